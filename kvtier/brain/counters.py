"""What the brain counts: cumulative numbers that only grow."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kvtier.types import BlockKey, OpStatus


@dataclass(slots=True)
class Flow:
    """Traffic in one direction."""

    chunks: int = 0
    nbytes: int = 0
    seconds: float = 0.0  # in service; of the slowest rank

    def add(self, nbytes: int, seconds: float) -> None:
        """Count one chunk."""
        self.chunks += 1
        self.nbytes += nbytes
        self.seconds += seconds


@dataclass(slots=True)
class TierCounters:
    """One lower tier's counters while they count."""

    hits: int = 0
    read: Flow = field(default_factory=Flow)
    written: Flow = field(default_factory=Flow)
    evictions: int = 0
    refused: int = 0  # chunks it could not take when they left tier 0
    failures: dict[OpStatus, int] = field(default_factory=dict)
    codecs: dict[str, int] = field(default_factory=dict)  # chunks written, by encoding


@dataclass(slots=True)
class Counters:
    """The whole cache's counters while they count."""

    lookups: int = 0
    hits: int = 0
    stores: int = 0
    no_room: int = 0
    orphans: int = 0
    not_admitted: int = 0
    evictions: int = 0
    dropped: int = 0
    demotions: int = 0
    loads: int = 0
    loaded: Flow = field(default_factory=Flow)
    vanished: int = 0
    refused_reads: int = 0
    late_reads: int = 0
    prefetches: int = 0
    resets: int = 0


class ReadAhead:
    """The bytes that were read ahead of any request, and how many of them were of use.

    Each chunk waits here from its landing in tier 0 until a request uses it or it leaves.
    """

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
