"""How fast the engine computes, by the time from a step's order to its output."""

import time
from collections.abc import Callable

_PREFILL_TOKENS = 64  # a step of fewer is decode and says nothing about prefill
_UNDER_WAY = 8  # steps; vLLM has two at most


class Speed:
    """Times steps by number: outputs come in order, but some steps have none, and the next is ordered before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: dict[int, tuple[float, int]] = {}  # when it was ordered, and its tokens
        self._count = 0
        self._output_at = 0.0

    def begin(self, tokens: int) -> int:
        """Note that a step is ordered; return its number if it is worth timing, else 0."""
        if tokens < _PREFILL_TOKENS:
            return 0
        self._count += 1
        self._steps[self._count] = (self._clock(), tokens)
        if len(self._steps) > _UNDER_WAY:
            del self._steps[next(iter(self._steps))]
        return self._count

    def end(self, number: int) -> tuple[int, float] | None:
        """Return tokens and seconds of a step whose output has come; it began with the end of the one before."""
        if number not in self._steps:
            return None
        ordered, tokens = self._steps.pop(number)
        return tokens, self._clock() - max(ordered, self._output_at)

    def output(self) -> None:
        """Note that a step's output has come, whatever it was."""
        self._output_at = self._clock()
