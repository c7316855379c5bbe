"""What was given up for room lately: it tells a miss that more capacity would have been a hit from one of what is new."""

from array import array
from collections.abc import Iterable

from kvtier.types import BlockKey

_PLACES = 1 << 20
_TAG = (1 << 32) - 1


class Evicted:
    """A place for each key, that a later one takes over: 4 MiB for about a million of the last chunks, none before the first."""

    def __init__(self) -> None:
        self._tags = array("I")

    def add(self, keys: Iterable[BlockKey]) -> None:
        """Note chunks that no tier holds any more."""
        tags = self._tags or self._grown()
        for found in map(hash, keys):
            tags[found % _PLACES] = found >> 20 & _TAG

    def __contains__(self, key: BlockKey) -> bool:
        found = hash(key)
        return bool(self._tags) and self._tags[found % _PLACES] == found >> 20 & _TAG

    def clear(self) -> None:
        """Forget all of it."""
        self._tags = array("I")

    def _grown(self) -> "array[int]":
        self._tags = array("I", bytes(4 * _PLACES))
        return self._tags
