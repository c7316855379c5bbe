"""What one tier held at start, as its ranks list it: batches in, whole records out, oldest first."""

from array import array
from collections.abc import Iterator
from itertools import islice

from kvtier.types import BlockKey, ScanBatch

_BUCKET_S = 60.0  # sorting minute by minute never stalls a step; one sort of a million records does


class Bucket:
    """The records of one minute, in columns: a million of them are not to wake the collector."""

    __slots__ = ("keys", "mtimes", "nbytes")

    def __init__(self) -> None:
        self.keys: list[BlockKey] = []
        self.nbytes = array("Q")
        self.mtimes = array("d")

    def oldest_first(self) -> Iterator[tuple[BlockKey, int]]:
        """Walk keys and bytes."""
        for i in sorted(range(len(self.keys)), key=self.mtimes.__getitem__):
            yield self.keys[i], self.nbytes[i]


class Scan:
    """Collect batches until every rank is done, then hand out what all of them have."""

    def __init__(self, ranks: int) -> None:
        self._all = (1 << ranks) - 1
        self._done = 0
        self._partial: dict[BlockKey, tuple[int, int]] = {}  # ranks that have it, bytes
        self._buckets: dict[int, Bucket] = {}
        self._found: Iterator[tuple[BlockKey, int]] | None = None

    @property
    def listed(self) -> bool:
        """Whether every rank has finished its list."""
        return self._done == self._all

    def add(self, batch: ScanBatch) -> int:
        """Take one batch; return the bytes of the records that it completed."""
        bit = 1 << batch.rank
        total = 0
        for raw, size, mtime in zip(batch.keys, batch.nbytes, batch.mtimes, strict=True):
            key = BlockKey(raw)
            ranks, nbytes = self._partial.pop(key, (0, 0))
            ranks |= bit
            nbytes = max(nbytes, size)
            if ranks == self._all:
                total += nbytes
                self._complete(key, nbytes, mtime)
            else:
                self._partial[key] = (ranks, nbytes)
        if batch.done:
            self._done |= bit
        return total

    def orphans(self) -> list[tuple[BlockKey, int]]:
        """Take the records that only some ranks have, with their bytes."""
        some, self._partial = self._partial, {}
        if some:  # a rank that had to list twice lists again what was complete
            for bucket in self._buckets.values():
                for key in bucket.keys:
                    some.pop(key, None)
        return [(key, nbytes) for key, (_, nbytes) in some.items()]

    def take(self, n: int) -> list[tuple[BlockKey, int]]:
        """Take up to `n` keys with their bytes, oldest first; fewer means that the scan is over."""
        if self._found is None:
            self._found = self._oldest_first()
        return list(islice(self._found, n))

    def _complete(self, key: BlockKey, nbytes: int, mtime: float) -> None:
        minute = int(mtime // _BUCKET_S)
        bucket = self._buckets.get(minute)
        if bucket is None:
            bucket = self._buckets[minute] = Bucket()
        bucket.keys.append(key)
        bucket.nbytes.append(nbytes)
        bucket.mtimes.append(mtime)

    def _oldest_first(self) -> Iterator[tuple[BlockKey, int]]:
        for minute in sorted(self._buckets):
            yield from self._buckets.pop(minute).oldest_first()
