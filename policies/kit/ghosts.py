"""What policies remember of chunks that are not here."""

from collections import OrderedDict
from collections.abc import Iterable

from kvtier.types import BlockKey


class Ghosts:
    """Keys of chunks that left, oldest first; bounded by whoever adds them."""

    def __init__(self) -> None:
        self._keys: OrderedDict[BlockKey, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._keys

    def add(self, key: BlockKey, limit: int) -> None:
        """Remember a key as the youngest, and forget the oldest beyond `limit`."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        while len(self._keys) > max(0, limit):
            self._keys.popitem(last=False)

    def take(self, key: BlockKey) -> bool:
        """Forget a key; return whether it was known."""
        known = key in self._keys
        if known:
            del self._keys[key]
        return known


class Seen:
    """A set of keys that remembers at least the last `limit` that were added, and at most twice as many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: set[BlockKey] = set()
        self._old: set[BlockKey] = set()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._young or key in self._old

    def add(self, keys: Iterable[BlockKey]) -> None:
        """Remember keys."""
        self._young.update(keys)
        if len(self._young) > self._limit:
            self._young, self._old = set(), self._young

    def discard(self, keys: Iterable[BlockKey]) -> None:
        """Forget keys."""
        keys = set(keys)
        self._young -= keys
        self._old -= keys
