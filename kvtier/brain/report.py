"""The brain's counters as one frozen snapshot."""

from kvtier.brain.breaker import BreakerState
from kvtier.brain.core import Core
from kvtier.brain.lower import Lower
from kvtier.brain.stats import CacheStats, TierStats
from kvtier.types import TIER0


def report(core: Core, reading: int) -> CacheStats:
    """Take the snapshot; `reading` chunks are on their way up."""
    ledger, counters = core.ledger, core.counters
    return CacheStats(
        tiers=(_arena(core), *(_lower(core, lower) for lower in core.lowers)),
        slots=ledger.slots.n,
        free_slots=ledger.slots.free,
        quarantined_slots=ledger.slots.quarantined,
        pinned=len(ledger.pins),
        reading=reading,
        requests=len(core.roster.requests),
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
        prefetched_bytes=core.ahead.landed_bytes,
        useful_bytes=core.ahead.useful_bytes,
        wasted_bytes=core.ahead.wasted_bytes,
        resets=counters.resets,
        hook_failures=ledger.hooks.failures,
        hooks_disabled=ledger.hooks.disabled,
        vetoes=ledger.hooks.vetoes,
    )


def _arena(core: Core) -> TierStats:
    ledger, counters = core.ledger, core.counters
    nbytes = max(group.nbytes for group in core.layout.groups)
    return TierStats(
        name="dram",
        capacity=ledger.slots.n * nbytes,
        used=(ledger.slots.n - ledger.slots.free) * nbytes,
        foreign=0,
        chunks=ledger.chunks[TIER0],
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


def _lower(core: Core, lower: Lower) -> TierStats:
    counters = lower.counters
    return TierStats(
        name=lower.spec.name,
        capacity=lower.spec.capacity,
        used=lower.used,
        foreign=lower.foreign,
        chunks=core.ledger.chunks[lower.tier],
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
