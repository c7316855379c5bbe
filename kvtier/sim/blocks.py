"""Block-level replay: one tier, no timing. Every request is over before the next one arrives."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvtier.assembly import assemble
from kvtier.brain import CacheStats, TieredCache
from kvtier.config import Config, Plugin, TierConfig
from kvtier.errors import ConfigError
from kvtier.sim.setting import ASSUMED, Prefill
from kvtier.sim.timeline import Timeline
from kvtier.trace.trace import Trace
from kvtier.types import BlockKey, GroupSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReplay:
    """What one replay found."""

    hits: npt.NDArray[np.int64]  # blocks per request
    stats: CacheStats = field(repr=False)


def one_tier(eviction: Plugin) -> Config:
    """Configure a cache of nothing but DRAM."""
    tier = TierConfig(name="dram", kind="dram", eviction=eviction)
    return Config(tiers=(tier,), load="always")


def replay_blocks(
    trace: Trace,
    config: Config,
    *,
    slots: int,
    block_nbytes: int,
    prefill: Prefill = ASSUMED,
) -> BlockReplay:
    """Let every request in turn look its prefix up, load what it hits and store the rest; no room for a block is a ConfigError."""
    if slots < 1:
        raise ConfigError(f"no room for one block of {trace.block_tokens} tokens")
    clock = Timeline()
    group = GroupSpec(0, trace.block_tokens, None, block_nbytes)
    cache = assemble(config, [group], ranks=1, clock=clock, even_tokens=prefill.knee)
    cache.open(usable(slots, trace), "{}")
    hits = np.zeros(len(trace), np.int64)
    for i, at in enumerate(trace.at_s.tolist()):
        clock.now = at
        hits[i] = serve(cache, str(i), trace.keys(i))
    return BlockReplay(hits=hits, stats=cache.stats())


def usable(slots: int, trace: Trace) -> int:
    """Bound a number of slots by what a trace can fill."""
    return min(slots, len(trace.ids) + 1)


def serve(cache: TieredCache, name: str, keys: list[BlockKey]) -> int:
    """Take one request through the brain as the connector does; return how many chunks it hit."""
    cache.arrive(name, [keys])
    n = hit_length(cache, name, keys)
    if n:
        hit = keys[:n]
        cache.plan_read(name, hit)
        cache.finish(cache.plan_load(name, hit).plan_id)
    cache.finish(cache.plan_store(name, keys).plan_id)
    cache.depart(name)
    return n


def hit_length(cache: TieredCache, name: str, keys: Sequence[BlockKey]) -> int:
    """Ask the lookups, from the start, how many chunks in a row are there."""
    lookup = cache.lookup
    for n, key in enumerate(keys):
        if not lookup(name, key):
            return n
    return len(keys)
