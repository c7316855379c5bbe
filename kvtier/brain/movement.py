"""Carries out what prefetch policies ask for: now, at its time, or once there is room."""

from collections.abc import Sequence

from kvtier.brain.agenda import Agenda
from kvtier.brain.core import Core
from kvtier.brain.demotion import Demotion
from kvtier.brain.promotion import Promotion
from kvtier.brain.requests import Request
from kvtier.policy import Move
from kvtier.types import BlockKey

_PATIENCE_S = 10.0  # with what is to come up and lacks room


class Movement:
    """Between the agenda, where moves wait, and the two that move."""

    def __init__(
        self, core: Core, agenda: Agenda, promotion: Promotion, demotion: Demotion
    ) -> None:
        self._clock = core.clock
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
