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
_MAX_KEYS = 512  # of all of these, in one step


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
        """Take what is due, in order of time, a few moves; the rest at the next call."""
        now = self._clock()
        found: list[Move] = []
        left = _MAX_KEYS
        while self._heap and self._heap[0][0] <= now and len(found) < _MAX_DUE and left > 0:
            found.append(heapq.heappop(self._heap)[2])
            left -= len(found[-1].keys)
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
        """Move what is due, as much as one step may cost."""
        left = _MAX_KEYS
        for move in self._agenda.due():
            self._move(move, left)
            left -= len(move.keys)

    def _move(self, move: Move, most: int) -> None:
        """Move up to `most` chunks, upwards the first ones, downwards the last; the others follow in the next step."""
        if move.still is not None and not move.still():
            return
        keys, others = move.keys, max(0, len(move.keys) - most)
        if not move.up:
            if self._demotion.sink(keys[others:]) and others:
                self._agenda.add((move._replace(keys=keys[:others]),))
        elif rest := self._promotion.bring_up(keys[:most]):
            self._wait(move._replace(keys=keys[len(keys) - others - len(rest) :]))
        elif others and self._promotion.is_coming(keys[most - 1]):
            self._agenda.add((move._replace(keys=keys[most:]),))

    def _wait(self, move: Move) -> None:
        """Go on with a move when there is room, for a while."""
        if self._clock() < move.at_s + _PATIENCE_S:
            self._agenda.add((move,))
