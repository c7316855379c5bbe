"""What the brain counts: cumulative numbers that only grow, and the state of the moment."""

from dataclasses import dataclass, field

from kvtier.brain.breaker import BreakerState
from kvtier.types import OpStatus


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStats:
    """One tier at this moment; counters are cumulative."""

    name: str
    capacity: int  # bytes of one rank's share; of the arena, all its slots
    used: int  # bytes, with what is being written and removed
    foreign: int  # bytes of other namespaces
    chunks: int
    hits: int  # chunks that requests found here
    reads: int
    read_bytes: int
    read_seconds: float
    writes: int
    write_bytes: int
    write_seconds: float
    evictions: int
    refused: int  # chunks it could not take when they left tier 0
    in_flight: int  # operations
    breaker: BreakerState
    trips: int  # how often it was sent to rest
    failures: tuple[tuple[OpStatus, int], ...]
    codecs: tuple[tuple[str, int], ...]  # chunks written, by encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """The brain at this moment; counters are cumulative."""

    tiers: tuple[TierStats, ...]
    slots: int
    free_slots: int
    quarantined_slots: int
    pinned: int  # chunks
    reading: int  # chunks on their way up
    requests: int
    lookups: int  # as often as the scheduler asks, several times per chunk
    stores: int  # chunks copied in from the device
    no_room: int  # chunks refused for lack of a slot
    orphans: int  # chunks refused because their parent is nowhere
    not_admitted: int  # chunks that the admission policy of tier 0 refused
    evictions: int  # chunks that left tier 0
    dropped: int  # of these, the ones that no other tier holds
    demotions: int  # evictions that went down first
    loads: int  # chunks copied to the device
    vanished: int  # chunks of a hit that were gone when it was loaded
    refused_reads: int  # requests that are computed because reading costs more
    late_reads: int  # requests whose reads missed their deadline
    prefetches: int  # chunks ordered ahead
    prefetched_bytes: int  # that came up before a request asked
    useful_bytes: int  # of these, that a request then used
    wasted_bytes: int  # of these, that left tier 0 unused
    resets: int
    hook_failures: int  # calls that raised or took too long
    hooks_disabled: int  # hooks that are called no more
    vetoes: int  # insertions and evictions that hooks refused
