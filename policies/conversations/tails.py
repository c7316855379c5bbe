"""The end of a prompt that the next one does not repeat: a chunk cut short, an answer whose thinking is stripped."""

from collections.abc import Container, Sequence

from kvtier.types import BlockKey

DEPTH = 16  # chunks that are looked at
_SAMPLES = 16
_RARE = 0.1


class Tails:
    """How often the last chunk of a lineage, the one before it, and so on, were used when it went on."""

    def __init__(self) -> None:
        self._times = 0
        self._used = [0] * DEPTH

    def went_on(self, tail: Sequence[BlockKey], path: Container[BlockKey]) -> None:
        """Learn from a lineage whose deepest chunks were `tail`, and whose next prompt has `path`."""
        self._times += 1
        for i, key in enumerate(reversed(tail)):
            self._used[i] += key in path

    def waste(self) -> int:
        """Return how many chunks at the end are hardly ever used again."""
        if self._times < _SAMPLES:
            return 0
        rare = (i for i, n in enumerate(self._used) if n > _RARE * self._times)
        return next(rare, 0)
