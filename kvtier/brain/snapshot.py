"""The numbers of the moment: a copy of what was counted, with its gauges filled in."""

from dataclasses import replace

from kvtier.brain.breaker import BreakerState
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.state import State
from kvtier.brain.stats import CacheStats, TierStats
from kvtier.types import TIER0


def snapshot(state: State, reading: int) -> CacheStats:
    """Take it; `reading` chunks are on their way up."""
    residency, counters = state.residency, state.counters
    return replace(
        counters,
        tiers=(_arena(state), *(_lower(state, lower) for lower in state.lowers)),
        load_refusals=counters.load_refusals.copy(),
        store_refusals=counters.store_refusals.copy(),
        hook_failures=state.hooks.failures,
        hooks_disabled=state.hooks.disabled,
        vetoes=state.hooks.vetoes,
        slots=residency.slots.n,
        free_slots=residency.slots.free,
        quarantined_slots=residency.slots.quarantined,
        pinned=len(residency.pins),
        reading=reading,
        requests=len(state.requests),
    )


def _arena(state: State) -> TierStats:
    residency, counters = state.residency, state.counters
    nbytes = max(group.nbytes for group in state.groups.specs)
    return replace(
        state.arena,
        reads=counters.loads,
        writes=counters.stores,
        evictions=counters.evictions,
        refused=counters.store_refusals.copy(),
        capacity=residency.slots.n * nbytes,
        used=(residency.slots.n - residency.slots.free) * nbytes,
        chunks=residency.chunks[TIER0],
    )


def _lower(state: State, lower: LowerTier) -> TierStats:
    counters, space = lower.counters, lower.space
    return replace(
        counters,
        refused=counters.refused.copy(),
        trips=lower.breaker.trips,
        failures=counters.failures.copy(),
        codecs=counters.codecs.copy(),
        capacity=space.capacity if space else 0,
        used=space.used if space else 0,
        foreign=space.foreign if space else 0,
        chunks=state.residency.chunks[lower.tier],
        in_flight=len(lower.ops),
        resting=lower.breaker.state is not BreakerState.CLOSED,
        breaker=lower.breaker.state,
    )
