"""Makes a brain from a configuration: the one way, for the live engine and for the replayer."""

import time
from collections.abc import Callable, Sequence

from kvtier.cache import LowerTier, TieredCache
from kvtier.config import Config, TierConfig
from kvtier.registry import build
from kvtier.types import GroupSpec


def assemble(
    config: Config,
    groups: Sequence[GroupSpec],
    *,
    ranks: int,
    local_ranks: int,
    clock: Callable[[], float] = time.monotonic,
) -> TieredCache:
    """Make the brain; `local_ranks` ranks share the capacity of each tier."""
    return TieredCache(
        groups=groups,
        ranks=ranks,
        tier0=build("eviction", config.tiers[0].eviction),
        lower=[lower_tier(tier, local_ranks) for tier in config.tiers[1:]],
        prefetch=build("prefetch", config.prefetch[0]) if config.prefetch else None,
        clock=clock,
        weigh_costs=config.load == "auto",
    )


def lower_tier(tier: TierConfig, local_ranks: int) -> LowerTier:
    """Describe one tier below the arena to the brain: a rank's share of it."""
    assert tier.capacity is not None
    return LowerTier(
        name=tier.name,
        capacity=tier.capacity // local_ranks,
        write=tier.write,
        deadline_s=tier.deadline_s,
        persistent=tier.persistent,
        eviction=build("eviction", tier.eviction),
        admission=build("admission", tier.admission),
    )
