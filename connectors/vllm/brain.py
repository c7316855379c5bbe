"""Builds the brain from the configuration, vLLM's KV-cache groups and the ranks' hellos."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.cache import LowerTier, TieredCache
from kvtier.config import Config, TierConfig
from kvtier.connectors.vllm.messages import Hello
from kvtier.registry import build
from kvtier.types import GroupSpec

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        SchedulerOffloadConfig,
    )


def build_brain(
    config: Config, vllm: "SchedulerOffloadConfig", hellos: Sequence[Hello], local_ranks: int
) -> TieredCache:
    """Make the brain; `local_ranks` ranks share the capacity of each tier."""
    groups = [
        GroupSpec(
            index=group.group_idx,
            chunk_tokens=group.tokens_per_chunk,
            window_chunks=group.sliding_window_size_in_chunks,
            nbytes=max(hello.group_nbytes[group.group_idx] for hello in hellos),
        )
        for group in vllm.kv_group_configs
    ]
    return TieredCache(
        groups=groups,
        ranks=len(hellos),
        tier0=build("eviction", config.tiers[0].eviction),
        lower=[lower_tier(tier, local_ranks) for tier in config.tiers[1:]],
        prefetch=build("prefetch", config.prefetch[0]) if config.prefetch else None,
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
