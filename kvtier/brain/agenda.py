"""The moves that prefetch policies asked for at a later time."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count

from kvtier.policy import Move

_MAX_MOVES = (
    4096  # the ones that come after are not taken: what was promised first is sooner useful
)


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
            if len(self._heap) < _MAX_MOVES:
                heapq.heappush(self._heap, (move.at_s, next(self._order), move))

    def due(self) -> Iterator[Move]:
        """Take what is due, in order of time."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]

    def clear(self) -> None:
        """Forget all of it."""
        self._heap.clear()
