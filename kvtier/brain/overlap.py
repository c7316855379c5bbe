"""Hits that are given before their last chunk has landed: what is left lands while the device is given the others."""

from collections.abc import Iterable, Sequence

from kvtier.brain.promotion import Promotion
from kvtier.brain.reading import Fill, Reading
from kvtier.brain.requests import Request, Waiter
from kvtier.brain.state import State
from kvtier.types import BlockKey

_EVIDENCE = 0.25  # of a wave's reads: how fast the others come is judged by those that landed
_MARGIN = 0.75  # of the time that the copies take
_MOST_S = 2.0  # also where copies seem slow because something else was
_GRACE_S = 0.05  # a landing is noticed, and a copy started, between two steps


class Overlap:
    """Says when a request's copies may start while its last reads are under way.

    Only the landings of this very wave are counted, and only where all of it comes from one tier: a tier that was fast a
    moment ago, or another one that is, proves nothing. What the device
    holds meanwhile is bounded by `patience`, after which the ranks copy no more.
    """

    def __init__(self, state: State, promotion: Promotion, *, enabled: bool) -> None:
        self._state = state
        self._promotion = promotion
        self._enabled = enabled and len(state.groups.specs) == 1

    def in_sight(self, request: Request) -> bool:
        """Whether all that a request waits for will have landed before its turn to be copied. O(1)."""
        reading = request.reading
        if not self._enabled or not isinstance(reading, Reading):
            return False
        if reading.more or reading.failed or reading.whole or reading.mixed:
            return False
        left, landed = len(reading.left), reading.landings
        if landed < max(2, _EVIDENCE * (landed + left)):
            return False
        now = self._state.clock()
        left_s = left * (now - reading.since) / landed + (now - request.heard_s)
        return left_s <= _MARGIN * self._copy_s(len(request.held) + left)

    def gives(self, request: Request, wanted: Sequence[BlockKey]) -> bool:
        """Whether a hit of these chunks may be given now; what is not held is under way, and nobody has cancelled it."""
        reading = request.reading
        if not isinstance(reading, Reading):
            return False
        fills, known = self._promotion.fills, {*request.held, *reading.left}
        if known != set(wanted) or any(fills[key].cancelled for key in reading.left):
            reading.whole = True
        reading.given = self.in_sight(request)
        return reading.given

    def given(self, request: Request | None, keys: Iterable[BlockKey]) -> dict[BlockKey, Fill]:
        """Return the reads of these chunks that a given hit counts on."""
        reading = request.reading if request else None
        if not isinstance(reading, Reading) or not reading.given:
            return {}
        return {key: self._promotion.fills[key] for key in keys if key in reading.left}

    def take_over(self, request: Request, fills: Iterable[Fill], copies: Waiter) -> None:
        """Let copies wait for reads that a request waited for; it waits for nothing then."""
        assert isinstance(request.reading, Reading)
        request.reading.count_wait()
        for fill in fills:
            fill.waiters.append(copies)
        self._promotion.abandon(request)
        self._promotion.end(request)

    def patience(self, chunks: int) -> float:
        """Seconds after which a load of so many chunks ends, whatever has not landed."""
        return min(2 * self._copy_s(chunks) + _GRACE_S, _MOST_S)

    def drop(self, keys: Iterable[BlockKey], copies: Waiter) -> None:
        """Let copies wait for these no more; reads that nobody else waits for are cancelled."""
        for key in keys:
            fill = self._promotion.fills.get(key)
            if fill is not None and copies in fill.waiters:
                fill.waiters.remove(copies)
                if not fill.waiters:
                    self._promotion.cancel(fill)

    def _copy_s(self, chunks: int) -> float:
        return chunks * self._state.groups.specs[0].nbytes * self._state.costs.load.steady()
