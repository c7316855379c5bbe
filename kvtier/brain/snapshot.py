"""The numbers of the moment: a copy of what was counted, with its gauges filled in."""

from kvtier.brain.breaker import BreakerState
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.state import State
from kvtier.brain.stats import CacheStats, TierStats
from kvtier.types import TIER0


def snapshot(state: State, reading: int) -> CacheStats:
    """Take it; `reading` chunks are on their way up."""
    stats, residency = state.counters.copy(), state.residency
    stats.tiers = (_arena(state), *(_lower(state, lower) for lower in state.lowers))
    stats.reuse, stats.regret = residency.ages.reuse, residency.ages.regret
    stats.hook_failures = state.hooks.failures
    stats.hooks_disabled = state.hooks.disabled
    stats.vetoes = state.hooks.vetoes
    stats.slots = residency.slots.n
    stats.free_slots = residency.slots.free
    stats.quarantined_slots = residency.slots.quarantined
    stats.pinned = len(residency.pins)
    stats.reading = reading
    stats.requests = len(state.requests)
    return stats


def _arena(state: State) -> TierStats:
    stats, slots = state.arena.copy(), state.residency.slots
    nbytes = max(group.nbytes for group in state.groups.specs) * state.operations.ranks
    ages = state.residency.ages
    stats.age, stats.idle = ages.age[TIER0], ages.idle[TIER0]
    stats.reads = state.counters.loads
    stats.writes = state.counters.stores
    stats.evictions = state.counters.evictions
    stats.capacity = slots.n * nbytes
    stats.used = (slots.n - slots.free) * nbytes
    stats.chunks = state.residency.chunks[TIER0]
    return stats


def _lower(state: State, lower: LowerTier) -> TierStats:
    stats, ages, n = lower.counters.copy(), state.residency.ages, lower.keepers
    if lower.space:
        stats.capacity = lower.space.room.capacity * n
        stats.short = lower.space.room.short * n
        stats.used = lower.space.used * n
        stats.foreign = lower.space.foreign * n
    stats.age, stats.idle = ages.age[lower.tier], ages.idle[lower.tier]
    stats.medium = lower.cost.bytes_per_s * state.operations.ranks
    stats.reads_in_flight = lower.reads.all
    stats.writes_in_flight = lower.demotions + lower.idles
    stats.chunks = state.residency.chunks[lower.tier]
    stats.in_flight = len(lower.ops)
    stats.trips = lower.breaker.trips
    stats.breaker = lower.breaker.state
    stats.resting = lower.breaker.state is not BreakerState.CLOSED
    return stats
