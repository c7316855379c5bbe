"""What kvtier takes of EngineCore's time in each step, by part."""

import time
from types import TracebackType

from kvtier.brain.metric import MOST_SAMPLES, Samples


class Part:
    """Sums up the seconds in its `with` blocks, which are not inside each other."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += time.perf_counter() - self._began


class StepTimes:
    """One step's parts, vLLM's own half of the connector with them: the queue's lookups, the orders, the answers."""

    def __init__(self, samples: Samples) -> None:
        self.lookup, self.order, self.answer = Part(), Part(), Part()
        self._parts = [(part, samples.of(name)) for name, part in vars(self).items()]

    def ended(self) -> None:
        """Note the step that ends here."""
        for part, found in self._parts:
            if len(found) < MOST_SAMPLES:
                found.append(part.seconds)
            part.seconds = 0.0
