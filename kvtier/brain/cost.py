"""Is it worth to read: moving averages of what reading and computing cost.

Every estimate of slowness halves with each half-life without a sample: a tier that was too slow is
tried again.
"""

from collections.abc import Callable

from kvtier.types import Medium

_HALF_LIFE_S = 30.0
_START_NBYTES = 16 << 20  # what a configured bandwidth counts for among those that are measured
_NOMINAL_PACE = 1e-4  # seconds per token while nothing was measured
EVEN_TOKENS = 24_576.0  # 6 * a width of 4096, see `prefill_s`


class Pace:
    """Seconds per unit, averaged with weights that fade with age; 0 while nothing is known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._units = 0.0
        self._seconds = 0.0
        self._at: float | None = clock()

    def start(self, units: float, seconds: float) -> None:
        """Take what was measured before: its age counts from when it is first asked for."""
        self._units, self._seconds, self._at = units, seconds, None

    def add(self, units: float, seconds: float) -> None:
        """Note that `units` took `seconds`."""
        keep = self._fade()
        self._units = self._units * keep + units
        self._seconds = self._seconds * keep + seconds
        self._at = self._clock()

    def __call__(self) -> float:
        """Return the seconds per unit, faded by the time without a sample."""
        return self._seconds / self._units * self._fade() if self._units else 0.0

    def steady(self) -> float:
        """Return the seconds per unit as last measured."""
        return self._seconds / self._units if self._units else 0.0

    def _fade(self) -> float:
        if self._at is None:
            self._at = self._clock()
        return float(0.5 ** ((self._clock() - self._at) / _HALF_LIFE_S))


class ReadCost:
    """One tier's read cost: a latency plus a time per byte. Without a `start` reading is free until measured.

    The rate is that of a tier that reads on. What a read waits behind others is in no estimate: to weigh it made hits
    fewer and first tokens no sooner in a replay of an hour of chats, for the engine computes others meanwhile.
    """

    def __init__(self, clock: Callable[[], float], start: Medium | None = None) -> None:
        self._latency = Pace(clock)
        self._per_byte = Pace(clock)
        if start is not None:
            self._latency.start(1, start.latency_s)
            self._per_byte.start(_START_NBYTES, _START_NBYTES / start.read)

    def served(self, seconds: float) -> None:
        """Note the service time of one read."""
        self._latency.add(1, seconds)

    def arrived(self, nbytes: int, seconds: float) -> None:
        """Note that `nbytes` came in the `seconds` since others did."""
        self._per_byte.add(nbytes, seconds)

    @property
    def bytes_per_s(self) -> float:
        """Return the rate as last measured, 0 while nothing is known."""
        pace = self._per_byte.steady()
        return 1 / pace if pace else 0.0

    def estimate(self, nbytes: int) -> float:
        """Seconds until `nbytes` would be here; 0 while nothing is known."""
        return self._latency() + nbytes * self._per_byte()


class Costs:
    """The engine's side of the bargain: prefill per token, slot to device per byte.

    With `weigh` false no read is ever too dear. `even_tokens` is the position at which a token's attention
    costs as much as all else of it. `start` is how fast the arena was found to be.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        weigh: bool = True,
        even_tokens: float = EVEN_TOKENS,
        start: Medium | None = None,
    ) -> None:
        self._weigh = weigh
        self._even_tokens = even_tokens
        self.prefill = Pace(clock)
        self.load = Pace(clock)
        if start is not None:
            self.load.start(_START_NBYTES, _START_NBYTES / start.read)

    @property
    def known(self) -> bool:
        """Whether the engine's own speed is known, and is to be weighed."""
        return self._weigh and self.prefill.steady() > 0

    def prefill_s(self, start: int, end: int) -> float:
        """Seconds to compute the tokens [start, end) of a sequence, at the measured pace.

        A token at position p costs 2 N FLOPs in the weights and 4 L d p in attention, so as much again at
        N / (2 L d), about 6 d with the usual N = 12 L d^2 (Kaplan et al. 2020, section 2.1, with the
        causal position in place of the context's length). The pace is that of all tokens measured.
        """
        pace = self.prefill.steady() or _NOMINAL_PACE
        return pace * (end - start) * (1 + (start + end) / 2 / self._even_tokens)

    def dearer(self, read_s: float, nbytes: int, tokens: int) -> bool:
        """Whether reading for `read_s` and loading `nbytes` costs more than computing `tokens`."""
        return read_s + nbytes * self.load() > tokens * self.prefill.steady()
