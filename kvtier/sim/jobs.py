"""Which replays answer a question: policies crossed with sizes, and the ceilings of each size."""

from collections.abc import Sequence

from kvtier.config import Config, Plugin
from kvtier.errors import ConfigError
from kvtier.sim.setting import Prefill
from kvtier.sim.sweep import BELADY, INFINITE, BlockJob, Job
from kvtier.sim.tiers import TierJob, with_policy


def block_jobs(
    policies: Sequence[Plugin],
    capacities: Sequence[int],
    *,
    nbytes_per_token: int,
    prefill: Prefill,
) -> list[Job]:
    """Cross policies and sizes, one tier, without timing."""
    cached: list[Job] = [
        BlockJob(
            name=policy.kind,
            eviction=policy,
            capacity_tokens=capacity,
            nbytes_per_token=nbytes_per_token,
            prefill=prefill,
        )
        for capacity in capacities
        for policy in policies
    ]
    return cached + ceilings(capacities, prefill)


def tier_jobs(config: Config, policies: Sequence[Plugin], capacities: Sequence[int]) -> list[Job]:
    """Cross policies and sizes of tier 0 over a configuration; without any, as it stands.

    The ceilings have room for all tiers together.

    Raises:
        ConfigError: tier 0 has no capacity, and none is given.
    """
    sizes = list(capacities) or [_dram_tokens(config)]
    variants = [(policy.kind, with_policy(config, policy)) for policy in policies]
    runs: list[Job] = [
        TierJob(name=name, config=variant, capacity_tokens=size)
        for size in sizes
        for name, variant in variants or [(config.tiers[0].eviction.kind, config)]
    ]
    below = sum(_tokens(config, tier.capacity or 0) for tier in config.tiers[1:])
    return runs + ceilings(sizes, Prefill.of(config.replay), below=below)


def ceilings(capacities: Sequence[int], prefill: Prefill, *, below: int = 0) -> list[Job]:
    """Add what no policy can reach: Belady per size and `below` tokens more, and an infinite cache."""
    bounds: list[tuple[str, int | None]] = [(BELADY, size) for size in capacities]
    return [
        BlockJob(
            name=name,
            eviction=None,
            capacity_tokens=size,
            below_tokens=below,
            nbytes_per_token=0,
            prefill=prefill,
        )
        for name, size in [*bounds, (INFINITE, None)]
    ]


def _dram_tokens(config: Config) -> int:
    capacity = config.tiers[0].capacity
    if capacity is None:
        raise ConfigError("tiers[0].capacity: missing; say it, or --capacity-tokens")
    return _tokens(config, capacity)


def _tokens(config: Config, nbytes: int) -> int:
    return nbytes // config.replay.kv_bytes_per_token
