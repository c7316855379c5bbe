"""A heap of leaves that forgets what is void bit by bit: no call pays for a sweep through all of it."""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from kvtier.leftovers import Leftovers

_SLACK = 256  # void entries that are not worth a thought
_PACE = 4  # entries that each call moves while the heap is renewed


class Leaf(NamedTuple):
    """An entry of a heap; void unless its stamp is still the row's."""

    rank: float
    stamp: int
    row: int


class LeafHeap:
    """Leaves, lowest rank first. When half of it is void, what is not moves to a new heap, a few with each call.

    Entries come off the end of the old heap's list, so that it stays a heap meanwhile.
    """

    def __init__(self, stamps: Sequence[int]) -> None:
        self._stamps = stamps
        self._heap: list[Leaf] = []
        self._old: list[Leaf] = []
        self._void = 0  # at most so many are

    def __len__(self) -> int:
        return len(self._heap) + len(self._old)

    def push(self, leaf: Leaf) -> None:
        """Add an entry."""
        heappush(self._heap, leaf)
        if self._old:
            self._renew()

    def top(self) -> Leaf | None:
        """Return the lowest entry that is not void, None if there is none."""
        while heap := self._lower():
            leaf = heap[0]
            if self._stamps[leaf.row] == leaf.stamp:
                return leaf
            heappop(heap)
            self._void -= 1
        return None

    def pop(self) -> None:
        """Take off what `top` returned."""
        heappop(self._lower())

    def voided(self) -> None:
        """Note that an entry became void."""
        self._void += 1
        if self._old:
            self._renew()
        elif self._void > len(self._heap) // 2 + _SLACK:
            self._old, self._heap, self._void = self._heap, [], 0

    def leave(self, leftovers: Leftovers) -> None:
        """Leave all entries to be freed: the heap is not used any more."""
        leftovers.leave(self._heap, self._old)

    def _lower(self) -> list[Leaf]:
        if not self._old or (self._heap and self._heap[0] < self._old[0]):
            return self._heap
        return self._old

    def _renew(self) -> None:
        for leaf in self._old[-_PACE:]:
            if self._stamps[leaf.row] == leaf.stamp:
                heappush(self._heap, leaf)
        del self._old[-_PACE:]
