"""What one tier held at start, as its ranks list it: batches in, whole records out, oldest first."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from kvtier.types import BlockKey, ScanBatch

_BUCKET_S = (
    60.0  # sorting whole minutes one by one never stalls a step; a global sort of a million does
)


class Found(NamedTuple):
    """A record that every rank has."""

    mtime: float
    key: BlockKey
    nbytes: int


class Scan:
    """Collect batches until every rank is done, then hand out what all of them have.

    `changed` are keys written since: what is known of them now wins.
    """

    def __init__(self, ranks: int) -> None:
        self.changed: set[BlockKey] = set()
        self._all = (1 << ranks) - 1
        self._done = 0
        self._partial: dict[BlockKey, tuple[int, int]] = {}  # ranks that have it, bytes
        self._buckets: dict[int, list[Found]] = {}
        self._found: Iterator[Found] | None = None

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
                bucket = self._buckets.setdefault(int(mtime // _BUCKET_S), [])
                bucket.append(Found(mtime, key, nbytes))
            else:
                self._partial[key] = (ranks, nbytes)
        if batch.done:
            self._done |= bit
        return total

    def orphans(self) -> list[tuple[BlockKey, int]]:
        """Take the records that only some ranks have, with their bytes."""
        some, self._partial = self._partial, {}
        return [(key, nbytes) for key, (_, nbytes) in some.items()]

    def take(self, n: int) -> list[Found]:
        """Take up to `n` records, oldest first; fewer means that the scan is over."""
        if self._found is None:
            self._found = self._oldest_first()
        return list(islice(self._found, n))

    def _oldest_first(self) -> Iterator[Found]:
        for bucket in sorted(self._buckets):
            yield from sorted(self._buckets.pop(bucket))
