"""The bytes that were read ahead of any request, and how many of them were of use."""

from collections.abc import Iterable

from kvtier.brain.stats import CacheStats
from kvtier.types import BlockKey


class ReadAhead:
    """Each chunk that was read ahead waits here, from its landing in tier 0 until a request uses it or it leaves."""

    def __init__(self, counters: CacheStats) -> None:
        self._counters = counters
        self._unused: dict[BlockKey, int] = {}

    def __len__(self) -> int:
        return len(self._unused)

    def landed(self, key: BlockKey, nbytes: int, *, awaited: bool) -> None:
        """Note a chunk that came up; `awaited`: a request waits for it by now."""
        self._counters.prefetched_bytes += nbytes
        if awaited:
            self._counters.useful_bytes += nbytes
        else:
            self._unused[key] = nbytes

    def used(self, keys: Iterable[BlockKey]) -> None:
        """Note a hit."""
        if self._unused:
            for key in keys:
                self._counters.useful_bytes += self._unused.pop(key, 0)

    def left(self, key: BlockKey) -> None:
        """Note that a chunk left tier 0."""
        self._counters.wasted_bytes += self._unused.pop(key, 0)

    def clear(self) -> None:
        """Note that everything left."""
        self._counters.wasted_bytes += sum(self._unused.values())
        self._unused.clear()
