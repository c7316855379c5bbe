"""Makes a brain from a configuration: the one way, for the live engine and for the replayer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvtier.brain import TieredCache, TierSpec
from kvtier.brain.cost import EVEN_TOKENS, Costs
from kvtier.config import Config, HooksConfig, Plugin, TierConfig
from kvtier.facts import TierFacts
from kvtier.hook import HookKind, HookSet
from kvtier.policy import AdmissionPolicy, EvictionPolicy, PrefetchPolicy
from kvtier.registry import build, find_callable, kept_once
from kvtier.types import GroupSpec, Medium

_MOST_IDLE = 512  # writes under way at leisure: what an engine that falls idle still gets written
_MOST_IDLE_SHARED = 16  # into a store of others, which may hang: each of them holds a slot


def assemble(  # noqa: PLR0913 - as of `TieredCache`
    config: Config,
    groups: Sequence[GroupSpec],
    *,
    ranks: int,
    clock: Callable[[], float] = time.monotonic,
    even_tokens: float = EVEN_TOKENS,
    events: bool = True,
    copies: bool = False,
    overlap: bool = False,
) -> TieredCache:
    """Make the brain of `ranks` ranks from the configuration of one, see `kvtier.config.of_rank`.

    `even_tokens`: the context at which attention costs as much as all else of a token; `events`: somebody asks
    what came and went; `overlap`: the ranks copy a hit's last chunks as they land.
    """
    costs = Costs(
        clock,
        weigh=config.load == "auto",
        even_tokens=even_tokens,
        start=_medium(config.tiers[0]),
    )
    return TieredCache(
        groups=groups,
        ranks=ranks,
        tier0=_eviction(config.tiers[0]),
        admission=_admission(config.tiers[0]),
        lower=[
            replace(lower_tier(tier), once=copies and kept_once(tier.kind))
            for tier in config.tiers[1:]
        ],
        prefetch=[_prefetch(plugin) for plugin in config.prefetch],
        hooks=_hooks(config.hooks),
        clock=clock,
        costs=costs,
        max_wait_s=config.max_wait_s,
        overlap=overlap,
        events=events,
        arena=config.tiers[0].name,
    )


def lower_tier(tier: TierConfig) -> TierSpec:
    """Describe one tier below the arena to the brain, as one rank has it."""
    return TierSpec(
        name=tier.name,
        capacity=tier.capacity,
        write=tier.write,
        deadline_s=tier.deadline_s,
        persistent=tier.persistent,
        eviction=None if tier.capacity is None else _eviction(tier),
        admission=_admission(tier),
        medium=_medium(tier),
        max_writes=64 if tier.capacity else _MOST_IDLE_SHARED,
        max_idle_writes=_MOST_IDLE if tier.capacity else _MOST_IDLE_SHARED,
    )


def _medium(tier: TierConfig) -> Medium | None:
    if tier.medium is None:
        return None
    return Medium(tier.medium.read, tier.medium.latency_s)


def _admission(tier: TierConfig) -> Callable[[TierFacts], AdmissionPolicy] | None:
    """Make nothing for the default: the brain need not ask what always says yes."""
    if tier.admission.kind == "always":
        return None
    return lambda facts: build("admission", tier.admission, facts)


def _hooks(config: HooksConfig) -> HookSet:
    named = {kind: getattr(config, kind) for kind in HookKind}
    return HookSet(
        hooks={kind: [find_callable(name) for name in names] for kind, names in named.items()},
        budget_s=config.budget_s,
        max_failures=config.failures,
        max_vetoes=config.vetoes,
    )


def _eviction(tier: TierConfig) -> Callable[[TierFacts], EvictionPolicy]:
    return lambda facts: build("eviction", tier.eviction, facts)


def _prefetch(plugin: Plugin) -> Callable[[TierFacts], PrefetchPolicy]:
    return lambda facts: build("prefetch", plugin, facts)
