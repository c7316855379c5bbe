"""A circuit breaker: a tier that fails again and again rests, for longer each time."""

import random
from collections.abc import Callable
from enum import StrEnum

from kvtier.types import OpKind


class BreakerState(StrEnum):
    """What a tier may do."""

    CLOSED = "closed"  # it works
    RESTING = "resting"  # it is left alone until its time is over
    PROBING = "probing"  # one PROBE is under way


class Breaker:
    """Count failures in a row of each verb; `limit` of them open it, an OK probe closes it.

    The success of one verb says nothing about another. The verb that opened it is on trial after the probe: its
    next failure opens it again, for longer, and only its own success ends the trial.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        limit: int = 5,
        rest_s: float = 1.0,
        max_rest_s: float = 60.0,
        spread: float = 0.0,
    ) -> None:
        """Let each rest be longer or shorter by up to the share `spread`: many engines must not probe one store in step."""
        self.state = BreakerState.CLOSED
        self.trips = 0
        self._clock = clock
        self._limit = limit
        self._first_rest_s = self._rest_s = rest_s
        self._max_rest_s = max_rest_s
        self._spread = spread
        self._failures: dict[OpKind, int] = {}  # in a row
        self._opened_by: OpKind | None = None
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether the tier may be used."""
        return self.state is BreakerState.CLOSED

    @property
    def due(self) -> bool:
        """Whether it has rested long enough to be probed."""
        return self.state is BreakerState.RESTING and self._clock() >= self._until

    def succeeded(self, verb: OpKind) -> None:
        """Note an operation that worked; ignored while the tier rests."""
        if not self.closed:
            return
        self._failures.pop(verb, None)
        if verb is self._opened_by:
            self._opened_by = None
            self._rest_s = self._first_rest_s

    def failed(self, verb: OpKind) -> None:
        """Note an operation that did not; late answers of a resting tier do not count."""
        if not self.closed:
            return
        self._failures[verb] = self._failures.get(verb, 0) + 1
        if self._failures[verb] >= self._limit:
            self.trip(verb)

    def trip(self, verb: OpKind) -> None:
        """Open it for what `verb` did, however often."""
        if self.closed:
            self._opened_by = verb
            self._rest()

    def probing(self) -> None:
        """Note that the probe was ordered."""
        self.state = BreakerState.PROBING

    def forget_probe(self) -> None:
        """Note that the answer to the probe will not come: another one is due."""
        if self.state is BreakerState.PROBING:
            self.state = BreakerState.RESTING
            self._until = self._clock()

    def probed(self, *, ok: bool) -> None:
        """Note the probe's answer."""
        if ok:
            self.state = BreakerState.CLOSED
            self._failures = {}
            if self._opened_by is not None:
                self._failures[self._opened_by] = self._limit - 1
        else:
            self._rest()

    def _rest(self) -> None:
        self.state = BreakerState.RESTING
        self.trips += 1
        spread = random.uniform(1 - self._spread, 1 + self._spread)
        self._until = self._clock() + self._rest_s * spread
        self._rest_s = min(2 * self._rest_s, self._max_rest_s)
