"""The memory tier: records in a mapping of its own, on other NUMA nodes than the arena's, or encoded.

The far socket, CXL memory, or with a codec compressed DRAM. Nothing of it outlives the I/O process.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from kvtier import topology
from kvtier.errors import ConfigError, TierError
from kvtier.memory.prefault import Prefault
from kvtier.memory.region import Region, free_huge_nbytes
from kvtier.tier import Bytes, Entry, Site, Tier
from kvtier.tiers.extents import Extent, Extents
from kvtier.types import PAGE
from kvtier.units import format_nbytes

logger = logging.getLogger(__name__)

_PREFAULT_THREADS = 2


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether to take the whole capacity from the system at start, in the background."""

    prefault: bool = True


class _Record:
    """Pages of one record; given back when it was dropped and nobody reads it any more."""

    __slots__ = ("extents", "mtime", "nbytes", "users")

    def __init__(self, extents: tuple[Extent, ...], nbytes: int) -> None:
        self.extents = extents
        self.nbytes = nbytes
        self.mtime = time.time()
        self.users = 1


class MemoryTier(Tier):
    """Store records as whole pages, in one piece or in several. Any thread; the lock is not held over copies.

    `capacity` is what is mapped: a record takes its own pages and no byte more, and a write fails only
    where fewer pages are free than it needs.
    """

    Config = MemoryConfig
    persistent = False
    takes_numa = True

    def __init__(self, config: MemoryConfig, site: Site) -> None:
        self._name = site.name
        self._lock = threading.Lock()
        self._records: dict[bytes, _Record] = {}
        self._namespace = ""
        self._extents = Extents(site.capacity // PAGE)
        free = topology.free_nbytes()
        self._region = _mapped(site, free if site.spare_nbytes is None else site.spare_nbytes)
        self._pages: Bytes = self._region.bytes
        # Every rank of every engine on this node fills its own in at the same time.
        room = len(self._pages) * site.local_ranks * site.engines <= free
        fill = config.prefault and room
        bound = bool(site.nodes)
        self._prefault = Prefault(self._pages, _PREFAULT_THREADS, bound=bound) if fill else None

    @property
    def memory_nbytes(self) -> int:
        return 0 if self._region.huge else len(self._pages)

    def located(self) -> list[tuple[int, int]]:
        return self._region.locate().spread(len(self._pages))

    def open(self, namespace: str, manifest: str) -> None:
        with self._lock:
            if namespace != self._namespace:
                self._forget()
                self._namespace = namespace

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        with self._lock:
            self._opened("read")
            record = self._records.get(key)
            if record is None:
                return 0
            record.users += 1
        try:
            self._copy(record, bufs, into=False)
        finally:
            with self._lock:
                self._let_go(record)
        return record.nbytes

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        nbytes = sum(map(len, bufs))
        with self._lock:
            namespace = self._opened("write")
            extents = self._extents.take(nbytes // PAGE)
            if not extents:
                free = format_nbytes(self._extents.free * PAGE)
                raise TierError(self._name, "write", f"{nbytes} bytes, and {free} are free")
        record = _Record(extents, nbytes)
        self._copy(record, bufs, into=True)
        with self._lock:
            if self._namespace != namespace:
                self._let_go(record)
                raise TierError(self._name, "write", "the tier was reset")
            self._drop(key)
            self._records[key] = record
        return nbytes

    def remove(self, key: bytes) -> bool:
        with self._lock:
            return self._drop(key)

    def scan(self) -> Iterator[Entry]:
        with self._lock:
            self._opened("scan")
            found = [Entry(key, r.nbytes, r.mtime) for key, r in self._records.items()]
        yield from found

    def reset(self, namespace: str, manifest: str) -> None:
        with self._lock:
            self._forget()
            self._namespace = namespace

    def close(self) -> None:
        with self._lock:
            self._forget()
            self._namespace = ""
        if self._prefault is not None:
            self._prefault.stop()
        self._region.close()

    def _opened(self, operation: str) -> str:
        if not self._namespace:
            raise TierError(self._name, operation, "no namespace is open")
        return self._namespace

    def _forget(self) -> None:
        for key in list(self._records):
            self._drop(key)

    def _drop(self, key: bytes) -> bool:
        record = self._records.pop(key, None)
        if record is not None:
            self._let_go(record)
        return record is not None

    def _let_go(self, record: _Record) -> None:
        record.users -= 1
        if not record.users:
            self._extents.give(record.extents)

    def _copy(self, record: _Record, bufs: Sequence[Bytes], *, into: bool) -> None:
        """Copy between a record and buffers, as far as both go."""
        stored = [self._pages[start * PAGE : (start + n) * PAGE] for start, n in record.extents]
        for piece, buf in _pairs(stored, bufs):
            source, target = (buf, piece) if into else (piece, buf)
            np.copyto(target, source)


def _pairs(first: Sequence[Bytes], second: Sequence[Bytes]) -> Iterator[tuple[Bytes, Bytes]]:
    """Cut two sequences of buffers into pieces of the same length."""
    others = iter(second)
    other: Bytes = np.empty(0, np.uint8)
    for buf in first:
        rest = buf
        while len(rest):
            while not len(other):
                fresh = next(others, None)
                if fresh is None:
                    return
                other = fresh
            n = min(len(rest), len(other))
            yield rest[:n], other[:n]
            rest, other = rest[n:], other[n:]


def _mapped(site: Site, spare: int) -> Region:
    """Map and bind the rank's share; more than is left beside the arena and the tiers before this one is a ConfigError."""
    nbytes = site.capacity // PAGE * PAGE
    if not 0 < nbytes <= max(spare, free_huge_nbytes(site.nodes)):
        raise ConfigError(
            f"tier {site.name!r}: capacity: {format_nbytes(nbytes)} per rank, and "
            f"{format_nbytes(max(0, spare))} of memory are left for it"
        )
    region = Region(nbytes, site.nodes, shared=False)
    if region.refused:
        logger.warning(
            "tier %r is not bound to nodes %s: %s", site.name, site.nodes, region.refused
        )
    return region
