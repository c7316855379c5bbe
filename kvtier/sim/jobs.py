"""Replays as jobs, from a setting to a row: policies crossed with sizes, and the ceilings of each size."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from kvtier.brain import Why
from kvtier.config import Config, Plugin
from kvtier.errors import ConfigError
from kvtier.registry import is_asked
from kvtier.sim.belady import belady, infinite
from kvtier.sim.engine import EngineReplay, replay_engine
from kvtier.sim.lru import replay_one_tier
from kvtier.sim.results import ReplayRow, Ttft
from kvtier.sim.setting import Prefill, worth
from kvtier.trace.trace import Trace

BELADY, INFINITE = "belady", "infinite"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """One block-level replay. `eviction` None: the ceiling, of `capacity_tokens` or of no bound."""

    name: str
    eviction: Plugin | None = None
    capacity_tokens: int | None
    below_tokens: int = 0  # that Belady has besides, in lower tiers
    nbytes_per_token: int = 0
    prefill: Prefill

    def run(self, trace: Trace) -> ReplayRow:
        """Replay the trace."""
        started = time.process_time()
        nbytes = self.nbytes_per_token * trace.block_tokens
        moved: dict[str, int] = {}
        if self.capacity_tokens is None:
            hits = infinite(trace)
        elif self.eviction is None:
            room = self.capacity_tokens + self.below_tokens
            hits = belady(trace, room // trace.block_tokens)
        else:
            slots = self.capacity_tokens // trace.block_tokens
            done = replay_one_tier(
                trace, self.eviction, slots=slots, block_nbytes=nbytes, prefill=self.prefill
            )
            hits = done.hits
            moved = {"dram_in": done.stores * nbytes, "dram_out": int(hits.sum()) * nbytes}
        value = worth(trace, hits, self.prefill)
        return ReplayRow(
            policy=self.name,
            capacity_tokens=self.capacity_tokens,
            **value._asdict(),
            bytes=moved,
            ceiling=self.eviction is None,
            requests=len(trace),
            seconds=time.process_time() - started,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierJob:
    """One replay of a configuration; `name` stands in the row's column of policies."""

    name: str
    config: Config
    capacity_tokens: int  # of tier 0

    def run(self, trace: Trace) -> ReplayRow:
        """Replay the trace."""
        started = time.process_time()
        slots = self.capacity_tokens // trace.block_tokens
        done = replay_engine(trace, self.config, slots=slots)
        value = worth(trace, done.hits, Prefill.of(self.config.replay))
        nbytes = trace.block_tokens * self.config.replay.kv_bytes_per_token
        moved, amplification = _traffic(done, nbytes)
        return ReplayRow(
            policy=self.name,
            capacity_tokens=self.capacity_tokens,
            **value._asdict(),
            bytes=moved,
            requests=len(trace),
            seconds=time.process_time() - started,
            hits_per_tier={tier.name: tier.hits for tier in done.stats.tiers},
            write_amplification=amplification,
            ttft_s=_ttft(done),
            prefetched={
                "bytes": done.stats.prefetched_bytes,
                "useful": done.stats.useful_bytes,
                "wasted": done.stats.wasted_bytes,
            },
            refused_reads=done.stats.load_refusals[Why.TOO_DEAR],
            late_reads=done.stats.load_refusals[Why.LATE],
            utilisation=done.busy_s / done.ended_s if done.ended_s else 0.0,
            occupancy=done.occupancy,
        )


Job = BlockJob | TierJob


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
    return cached + _ceilings(capacities, prefill)


def tier_jobs(config: Config, policies: Sequence[Plugin], capacities: Sequence[int]) -> list[Job]:
    """Cross policies and sizes of tier 0 over a configuration; without any, as it stands.

    The ceilings have room for all tiers together.

    Raises:
        ConfigError: tier 0 has no capacity, and none is given.
    """
    for index, tier in enumerate(config.tiers[1:], 1):
        if is_asked(tier.kind):
            said = f"{tier.kind} is a store that engines share, and one engine is replayed; leave it out"
            raise ConfigError(f"tiers[{index}]: {said}")
    sizes = list(capacities) or [_dram_tokens(config)]
    variants = [(policy.kind, _with_policy(config, policy)) for policy in policies]
    runs: list[Job] = [
        TierJob(name=name, config=variant, capacity_tokens=size)
        for size in sizes
        for name, variant in variants or [(config.tiers[0].eviction.kind, config)]
    ]
    below = sum(_tokens(config, tier.capacity or 0) for tier in config.tiers[1:])
    return runs + _ceilings(sizes, Prefill.of(config.replay), below=below)


def _ceilings(capacities: Sequence[int], prefill: Prefill, *, below: int = 0) -> list[Job]:
    """Add what no policy can reach: Belady per size and `below` tokens more, and an infinite cache."""
    bounds: list[tuple[str, int | None]] = [(BELADY, size) for size in capacities]
    return [
        BlockJob(name=name, capacity_tokens=size, below_tokens=below, prefill=prefill)
        for name, size in [*bounds, (INFINITE, None)]
    ]


def _with_policy(config: Config, eviction: Plugin) -> Config:
    """Let every tier evict by one policy."""
    tiers = tuple(msgspec.structs.replace(tier, eviction=eviction) for tier in config.tiers)
    return msgspec.structs.replace(config, tiers=tiers)


def _traffic(done: EngineReplay, chunk_nbytes: int) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes per tier and direction; amplification is bytes written by bytes of new KV computed."""
    dram, *lower = done.stats.tiers
    computed = dram.writes * chunk_nbytes
    moved = {f"{dram.name}_in": computed, f"{dram.name}_out": dram.reads * chunk_nbytes}
    amplification = {}
    for tier in lower:
        moved[f"{tier.name}_in"] = tier.write_bytes
        moved[f"{tier.name}_out"] = tier.read_bytes
        amplification[tier.name] = tier.write_bytes / computed if computed else 0.0
    return moved, amplification


def _ttft(done: EngineReplay) -> Ttft:
    p50, p95, p99 = np.percentile(done.ttft_s, (50, 95, 99)).tolist()
    return Ttft(p50=p50, p95=p95, p99=p99, mean=float(done.ttft_s.mean()))


def _dram_tokens(config: Config) -> int:
    capacity = config.tiers[0].capacity
    if capacity is None:
        raise ConfigError("tiers[0].capacity: missing; say it, or --capacity-tokens")
    return _tokens(config, capacity)


def _tokens(config: Config, nbytes: int) -> int:
    return nbytes // config.replay.kv_bytes_per_token
