"""The slots of the arena: who may be given one.

A slot is free only when nobody owns it and nobody can still read or write it.
"""

from array import array
from collections.abc import Iterable

from kvtier.types import NO_SLOT


class Slots:
    """Hand out slot numbers; a released slot that is still in use waits in quarantine."""

    def __init__(self) -> None:
        self.n = 0
        self._free = array("i")
        self._all = array("i")  # copied when all are free again: making it takes long
        self._uses: dict[int, int] = {}
        self._quarantine: set[int] = set()

    def open(self, n: int) -> None:
        """Take over an arena of `n` slots, all free; once."""
        assert not self.n
        self.n = n
        self._all = array("i", range(n - 1, -1, -1))
        self._free = self._all[:]

    @property
    def free(self) -> int:
        """How many can be taken now."""
        return len(self._free)

    @property
    def quarantined(self) -> int:
        """How many have no owner but a reader or writer whose answer is due."""
        return len(self._quarantine)

    def take(self) -> int:
        """Take a free slot, NO_SLOT if there is none."""
        return self._free.pop() if self._free else NO_SLOT

    def take_used(self, n: int) -> list[int]:
        """Take up to `n` free slots, each with one use noted."""
        free = self._free
        n = min(n, len(free))
        taken = free[len(free) - n :].tolist()[::-1]
        del free[len(free) - n :]
        self._uses.update(dict.fromkeys(taken, 1))
        return taken

    def release_all(self, slots: Iterable[int]) -> None:
        """End the ownership of slots."""
        free, uses = self._free, self._uses
        for slot in slots:
            if slot in uses:
                self._quarantine.add(slot)
            else:
                free.append(slot)

    def release(self, slot: int) -> None:
        """End the ownership of a slot."""
        if slot in self._uses:
            self._quarantine.add(slot)
        else:
            self._free.append(slot)

    def disown(self) -> None:
        """End the ownership of every slot."""
        self._quarantine = set(self._uses)
        self._free = array("i")
        start = 0
        for slot in sorted(self._quarantine, reverse=True):  # in pieces: one by one takes long
            self._free += self._all[start : self.n - 1 - slot]
            start = self.n - slot
        self._free += self._all[start:]

    def use(self, slot: int) -> None:
        """Note a copy or operation that reads or writes the slot from now on."""
        self._uses[slot] = self._uses.get(slot, 0) + 1

    def use_all(self, slots: Iterable[int]) -> None:
        """Note one use of each of these slots."""
        uses = self._uses
        for slot in slots:
            uses[slot] = uses.get(slot, 0) + 1

    def done(self, slot: int) -> None:
        """Note that one such use is over on every rank."""
        left = self._uses.pop(slot) - 1
        if left:
            self._uses[slot] = left
        elif slot in self._quarantine:
            self._quarantine.remove(slot)
            self._free.append(slot)

    def done_all(self, slots: Iterable[int]) -> None:
        """Note that one use of each of these slots is over on every rank."""
        uses = self._uses
        for slot in slots:
            if uses[slot] == 1 and slot not in self._quarantine:
                del uses[slot]
            else:
                self.done(slot)

    def check(self, owned: list[int]) -> None:
        """Assert that every slot is exactly one of free, owned and quarantined."""
        seen = sorted([*self._free, *owned, *self._quarantine])
        assert seen == list(range(self.n)), "a slot is lost or has two owners"
        assert not self._uses.keys() & set(self._free), "a slot in use is free"
        assert self._quarantine <= self._uses.keys(), "nothing keeps a slot in quarantine"

    def uses(self) -> dict[int, int]:
        """Return how many uses each slot in use has."""
        return dict(self._uses)
