"""Chunks that were read ahead of any request: how many bytes were of use."""

from collections.abc import Iterable

from kvtier.types import BlockKey


class Ahead:
    """Each chunk waits here from its landing in tier 0 until a request uses it or it leaves."""

    def __init__(self) -> None:
        self.landed_bytes = 0
        self.useful_bytes = 0
        self.wasted_bytes = 0
        self._unused: dict[BlockKey, int] = {}

    def __len__(self) -> int:
        return len(self._unused)

    def landed(self, key: BlockKey, nbytes: int, *, awaited: bool) -> None:
        """Note a chunk that came up; `awaited`: a request waits for it by now."""
        self.landed_bytes += nbytes
        if awaited:
            self.useful_bytes += nbytes
        else:
            self._unused[key] = nbytes

    def used(self, keys: Iterable[BlockKey]) -> None:
        """Note a hit."""
        if self._unused:
            for key in keys:
                self.useful_bytes += self._unused.pop(key, 0)

    def left(self, key: BlockKey) -> None:
        """Note that a chunk left tier 0."""
        self.wasted_bytes += self._unused.pop(key, 0)

    def clear(self) -> None:
        """Note that everything left."""
        self.wasted_bytes += sum(self._unused.values())
        self._unused.clear()
