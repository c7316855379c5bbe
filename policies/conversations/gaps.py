"""How long conversations pause: moving averages of the logarithm of the gap, and of its deviation."""

import math

_WEIGHT = 0.05  # of the last gap
_SAMPLES = 8
_LEAST_S = 1e-3


class Gaps:
    """The gaps of one class; think times spread over decades, so that their logarithms are averaged."""

    def __init__(self) -> None:
        self._n = 0
        self._mean = 0.0
        self._square = 0.0

    def add(self, gap_s: float) -> None:
        """Learn from one gap."""
        log = math.log(max(gap_s, _LEAST_S))
        self._n += 1
        weight = max(_WEIGHT, 1 / self._n)
        self._mean += weight * (log - self._mean)
        self._square += weight * (log * log - self._square)

    @property
    def known(self) -> bool:
        """Whether enough gaps were seen."""
        return self._n >= _SAMPLES

    def at(self, deviations: float) -> float:
        """Return the usual gap, plus so many deviations."""
        spread = math.sqrt(max(0.0, self._square - self._mean * self._mean))
        return math.exp(self._mean + deviations * spread)
