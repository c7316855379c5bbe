"""One replay over a full tier configuration, from a job to a row."""

import time
from dataclasses import dataclass

import msgspec
import numpy as np

from kvtier.brain import Why
from kvtier.config import Config, Plugin
from kvtier.sim.engine import EngineReplay, replay_engine
from kvtier.sim.results import ReplayRow, Ttft
from kvtier.sim.setting import Prefill, worth
from kvtier.trace.trace import Trace


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


def with_policy(config: Config, eviction: Plugin) -> Config:
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
