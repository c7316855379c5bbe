"""What policies remember of chunks that are not here."""

from collections import OrderedDict

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
        self.trim(limit)

    def trim(self, limit: int) -> None:
        """Forget the oldest beyond `limit`."""
        while len(self._keys) > max(0, limit):
            self._keys.popitem(last=False)

    def take(self, key: BlockKey) -> bool:
        """Forget a key; return whether it was known."""
        known = key in self._keys
        if known:
            del self._keys[key]
        return known
