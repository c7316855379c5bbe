"""What prefetch policies ask for: the moves that wait for their time or for room, and who carries them out."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from kvtier.brain.demotion import Demotion
from kvtier.brain.promotion import Promotion
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.policy import Move
from kvtier.types import BlockKey

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


_PATIENCE_S = 10.0  # with what is to come up and lacks room


class Prefetch:
    """Between the agenda, where moves wait, and the two that move."""

    def __init__(
        self, state: State, agenda: Agenda, promotion: Promotion, demotion: Demotion
    ) -> None:
        self._clock = state.clock
        self._agenda = agenda
        self._promotion = promotion
        self._demotion = demotion

    def ahead(self, request: Request, keys: Sequence[BlockKey]) -> None:
        """Bring up what a request that arrived will want; what lacks room comes later, unless it has started."""
        if rest := self._promotion.read_ahead(request, keys):
            self._wait(Move(rest, self._clock(), still=lambda: not request.started))

    def tick(self) -> None:
        """Move what is due."""
        for move in self._agenda.due():
            self._move(move)

    def _move(self, move: Move) -> None:
        if move.still is not None and not move.still():
            return
        if not move.up:
            self._demotion.sink(move.keys)
        elif rest := self._promotion.bring_up(move.keys):
            self._wait(move._replace(keys=rest))

    def _wait(self, move: Move) -> None:
        """Go on with a move when there is room, for a while."""
        if self._clock() < move.at_s + _PATIENCE_S:
            self._agenda.add((move,))
