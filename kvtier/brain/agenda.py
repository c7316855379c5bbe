"""The moves that prefetch policies asked for at a later time."""

import heapq
from collections.abc import Callable, Iterable
from itertools import count

from kvtier.policy import Move

_MAX_MOVES = 4096  # of more, the half that is due last is forgotten
_MAX_DUE = 64  # in one step


class Agenda:
    """Moves by time. It has no timer: what is due is looked at when the brain is called anyway."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Move]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, moves: Iterable[Move]) -> None:
        """Take moves for their time."""
        for move in moves:
            heapq.heappush(self._heap, (move.at_s, next(self._order), move))
        if len(self._heap) > _MAX_MOVES:
            self._heap = heapq.nsmallest(_MAX_MOVES // 2, self._heap)

    def due(self) -> list[Move]:
        """Take what is due, in order of time, a few; the rest at the next call."""
        now = self._clock()
        found: list[Move] = []
        while self._heap and self._heap[0][0] <= now and len(found) < _MAX_DUE:
            found.append(heapq.heappop(self._heap)[2])
        return found

    def clear(self) -> None:
        """Forget all of it."""
        self._heap.clear()
