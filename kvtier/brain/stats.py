"""The brain at one moment: its counters and its state as one frozen snapshot."""

from dataclasses import dataclass

from kvtier.brain.breaker import BreakerState
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.state import State
from kvtier.types import TIER0, OpStatus


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


def take_stats(state: State, reading: int) -> CacheStats:
    """Take the snapshot; `reading` chunks are on their way up."""
    residency, counters = state.residency, state.counters
    return CacheStats(
        tiers=(_arena(state), *(_lower(state, lower) for lower in state.lowers)),
        slots=residency.slots.n,
        free_slots=residency.slots.free,
        quarantined_slots=residency.slots.quarantined,
        pinned=len(residency.pins),
        reading=reading,
        requests=len(state.roster.requests),
        lookups=counters.lookups,
        stores=counters.stores,
        no_room=counters.no_room,
        orphans=counters.orphans,
        not_admitted=counters.not_admitted,
        evictions=counters.evictions,
        dropped=counters.dropped,
        demotions=counters.demotions,
        loads=counters.loads,
        vanished=counters.vanished,
        refused_reads=counters.refused_reads,
        late_reads=counters.late_reads,
        prefetches=counters.prefetches,
        prefetched_bytes=state.ahead.landed_bytes,
        useful_bytes=state.ahead.useful_bytes,
        wasted_bytes=state.ahead.wasted_bytes,
        resets=counters.resets,
        hook_failures=residency.hooks.failures,
        hooks_disabled=residency.hooks.disabled,
        vetoes=residency.hooks.vetoes,
    )


def _arena(state: State) -> TierStats:
    residency, counters = state.residency, state.counters
    nbytes = max(group.nbytes for group in state.groups.specs)
    return TierStats(
        name="dram",
        capacity=residency.slots.n * nbytes,
        used=(residency.slots.n - residency.slots.free) * nbytes,
        foreign=0,
        chunks=residency.chunks[TIER0],
        hits=counters.hits,
        reads=counters.loads,
        read_bytes=counters.loaded.nbytes,
        read_seconds=counters.loaded.seconds,
        writes=counters.stores,
        write_bytes=0,
        write_seconds=0.0,
        evictions=counters.evictions,
        refused=counters.no_room,
        in_flight=0,
        breaker=BreakerState.CLOSED,
        trips=0,
        failures=(),
        codecs=(),
    )


def _lower(state: State, lower: LowerTier) -> TierStats:
    counters = lower.counters
    return TierStats(
        name=lower.spec.name,
        capacity=lower.spec.capacity,
        used=lower.used,
        foreign=lower.foreign,
        chunks=state.residency.chunks[lower.tier],
        hits=counters.hits,
        reads=counters.read.chunks,
        read_bytes=counters.read.nbytes,
        read_seconds=counters.read.seconds,
        writes=counters.written.chunks,
        write_bytes=counters.written.nbytes,
        write_seconds=counters.written.seconds,
        evictions=counters.evictions,
        refused=counters.refused,
        in_flight=len(lower.ops),
        breaker=lower.breaker.state,
        trips=lower.breaker.trips,
        failures=tuple(sorted(counters.failures.items())),
        codecs=tuple(sorted(counters.codecs.items())),
    )
