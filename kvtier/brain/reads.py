"""The reads of one tier under way: what counts against its budget, and what is late."""

from collections import OrderedDict
from collections.abc import Callable

from kvtier.types import BlockKey


class Reads:
    """Reads in the order in which they fall due. Nobody waits for a late one; its slot does, until it is answered.

    A tier hangs if one of its reads is late by a whole deadline more. Reads that were ordered before the tier
    rested are excused: what they say was heard.
    """

    def __init__(self, deadline_s: float, clock: Callable[[], float]) -> None:
        self._deadline_s = deadline_s
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget all of them."""
        self.all = 0  # not answered yet
        self.demanded: set[BlockKey] = set()  # of all of them: somebody waits, or did
        self._due: OrderedDict[BlockKey, float] = OrderedDict()  # those in time
        self._in_time = 0  # of those that are demanded
        self._late: OrderedDict[BlockKey, float] = OrderedDict()  # with when they were due
        self._excused = -1.0  # what was due by then is

    def begin(self, key: BlockKey, *, demanded: bool) -> None:
        """Note a read that was ordered."""
        self.all += 1
        self._due[key] = self._clock() + self._deadline_s
        if demanded:
            self.demanded.add(key)
            self._in_time += 1

    def demand(self, key: BlockKey) -> None:
        """Note that somebody waits for a read from now on."""
        if key not in self.demanded and not self.is_late(key):
            self.demanded.add(key)
            self._in_time += 1
            self._due[key] = self._clock() + self._deadline_s
            self._due.move_to_end(key)

    def end(self, key: BlockKey) -> None:
        """Note the answer to a read."""
        self.all -= 1
        in_time = self._due.pop(key, None) is not None
        if not in_time:
            self._late.pop(key, None)
        if key in self.demanded:
            self.demanded.remove(key)
            self._in_time -= in_time

    def is_late(self, key: BlockKey) -> bool:
        """Whether a read under way is past its deadline."""
        self._look()
        return key not in self._due

    @property
    def in_time(self) -> int:
        """How many that somebody waits for are not late."""
        self._look()
        return self._in_time

    @property
    def ahead(self) -> int:
        """How many that nobody waits for are not late."""
        self._look()
        return len(self._due) - self._in_time

    @property
    def hung(self) -> bool:
        """Whether one is late by more than the deadline once more."""
        self._look()
        first = next(iter(self._late.values()), None)
        return first is not None and first + self._deadline_s < self._clock()

    def excuse(self) -> None:
        """Hold what is under way against the tier no more."""
        self._late.clear()
        self._excused = self._clock() + self._deadline_s

    def _look(self) -> None:
        now = self._clock()
        while self._due:
            key, due = next(iter(self._due.items()))
            if now < due:
                return
            del self._due[key]
            self._in_time -= key in self.demanded
            if due > self._excused:
                self._late[key] = due
