"""A circuit breaker: a tier that fails again and again rests, for longer each time."""

from collections.abc import Callable
from enum import StrEnum


class BreakerState(StrEnum):
    """What a tier may do."""

    CLOSED = "closed"  # it works
    RESTING = "resting"  # it is left alone until its time is over
    PROBING = "probing"  # one PROBE is under way


class Breaker:
    """Count failures in a row; `limit` of them open it, an OK probe closes it."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        limit: int = 5,
        rest_s: float = 1.0,
        max_rest_s: float = 60.0,
    ) -> None:
        self.state = BreakerState.CLOSED
        self.trips = 0
        self._clock = clock
        self._limit = limit
        self._first_rest_s = self._rest_s = rest_s
        self._max_rest_s = max_rest_s
        self._failures = 0
        self._until = 0.0

    @property
    def closed(self) -> bool:
        """Whether the tier may be used."""
        return self.state is BreakerState.CLOSED

    @property
    def due(self) -> bool:
        """Whether it has rested long enough to be probed."""
        return self.state is BreakerState.RESTING and self._clock() >= self._until

    def succeeded(self) -> None:
        """Note an operation that worked; ignored while the tier rests."""
        if self.closed:
            self._failures = 0
            self._rest_s = self._first_rest_s

    def failed(self) -> None:
        """Note an operation that did not; late answers of a resting tier do not count."""
        if not self.closed:
            return
        self._failures += 1
        if self._failures >= self._limit:
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
            self._failures = 0
        else:
            self._rest()

    def _rest(self) -> None:
        self.state = BreakerState.RESTING
        self.trips += 1
        self._until = self._clock() + self._rest_s
        self._rest_s = min(2 * self._rest_s, self._max_rest_s)
