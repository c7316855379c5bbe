"""What one tier held at start, as its ranks list it: batches in, whole records out, oldest first."""

from array import array
from collections import deque
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
    """Collect batches until every rank is done, then hand out what all of them have.

    A rank whose process died on the way lists again from the start: what it lists twice counts once.
    """

    def __init__(self, opening: int, ranks: int) -> None:
        """Take the batches of the OPEN of this number only."""
        self.nbytes = 0  # of the records that all ranks have
        self._opening = opening
        self._all = (1 << ranks) - 1
        self._done = 0
        self._batches: deque[ScanBatch] = deque()  # that came
        self._at = 0  # records of the first of these that are taken in
        # By the first byte of the key: one set of a million stops the engine whenever it grows, and when it goes.
        # The ranks that have a record, and its bytes:
        self._partial: list[dict[BlockKey, tuple[int, int]]] = [{} for _ in range(256)]
        self._whole: list[set[BlockKey]] = [set() for _ in range(256)]  # what all ranks have
        self._buckets: dict[int, Bucket] = {}
        self._found: Iterator[tuple[BlockKey, int]] | None = None

    @property
    def listed(self) -> bool:
        """Whether every rank has finished its list."""
        return self._done == self._all

    def add(self, batch: ScanBatch) -> bool:
        """Take one batch, unless it belongs to no list that is awaited; return whether it was. `work` looks at it."""
        if batch.op != self._opening or self.listed:
            return False
        self._batches.append(batch)
        return True

    def work(self, n: int) -> bool:
        """Take in up to `n` records of the batches that came, as a whole one would take as long as a decode step;
        return whether there were any.
        """
        worked = bool(self._batches)
        while self._batches and n > 0:
            batch, start = self._batches[0], self._at
            self._at = min(start + n, len(batch.keys))
            n -= self._at - start
            self._take_in(batch, start, self._at)
            if self._at == len(batch.keys):
                self._batches.popleft()
                self._at = 0
                if batch.done:
                    self._done |= 1 << batch.rank
        return worked

    def _take_in(self, batch: ScanBatch, start: int, end: int) -> None:
        bit = 1 << batch.rank
        columns = (batch.keys, batch.nbytes, batch.mtimes)
        for raw, size, mtime in zip(*(each[start:end] for each in columns), strict=True):
            key, part = BlockKey(raw), raw[0] if raw else 0
            if key in self._whole[part]:
                continue
            ranks, nbytes = self._partial[part].pop(key, (0, 0))
            ranks |= bit
            nbytes = max(nbytes, size)
            if ranks == self._all:
                self._whole[part].add(key)
                self._complete(key, nbytes, mtime)
            else:
                self._partial[part][key] = (ranks, nbytes)

    def orphans(self) -> list[tuple[BlockKey, int]]:
        """Take the records that only some ranks have, with their bytes; nothing is listed any more."""
        some, self._partial = self._partial, []
        return [(key, nbytes) for each in some for key, (_, nbytes) in each.items()]

    def take(self, n: int) -> list[tuple[BlockKey, int]]:
        """Take up to `n` keys with their bytes, oldest first; fewer means that the scan is over."""
        if self._found is None:
            self._found = self._oldest_first()
        del self._whole[-1:]  # a part at a time: nothing is listed any more
        return list(islice(self._found, n))

    def _complete(self, key: BlockKey, nbytes: int, mtime: float) -> None:
        minute = int(mtime // _BUCKET_S)
        bucket = self._buckets.get(minute)
        if bucket is None:
            bucket = self._buckets[minute] = Bucket()
        self.nbytes += nbytes
        bucket.keys.append(key)
        bucket.nbytes.append(nbytes)
        bucket.mtimes.append(mtime)

    def _oldest_first(self) -> Iterator[tuple[BlockKey, int]]:
        for minute in sorted(self._buckets):
            yield from self._buckets.pop(minute).oldest_first()
