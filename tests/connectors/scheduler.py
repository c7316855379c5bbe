"""vLLM's real scheduler around our connector, as the bench has it, and traffic to drive it with."""

import importlib.util
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from kvtier.brain import CacheStats, TierStats
from kvtier.brain.metric import Samples
from kvtier.connectors.vllm.lookups import Lookups

_FILE = Path(__file__).parents[2] / "bench" / "_scheduler.py"


@cache
def _module() -> Any:
    spec = importlib.util.spec_from_file_location("bench_scheduler", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_scheduler"] = module
    spec.loader.exec_module(module)
    return module


def engine(**options: Any) -> Any:
    """Make one, whose lookups take no time; see `Engine` in bench/_scheduler.py."""
    made = _module().Engine("kvtier", **options)
    made.connector._lookups = Lookups(lambda: 0.0)
    return made


def counted(stats: CacheStats) -> CacheStats:
    """Leave out what a clock said: two runs that decide the same have the same of all else."""
    tables: list[CacheStats | TierStats] = [stats, *stats.tiers]
    for table in tables:
        for each in fields(table):
            if isinstance(getattr(table, each.name), Samples):
                setattr(table, each.name, Samples())
    for tier in stats.tiers:
        tier.spent = tier.medium = 0.0
    return stats


class Traffic:
    """Requests over a few prefixes that come, are aborted and end, the same for the same seed."""

    def __init__(self, engine: Any, seed: int = 0) -> None:
        self.engine = engine
        self.jobs: list[object] = []  # what each step gave the worker
        self._rng = Random(seed)
        self._count = 0
        self._alive: list[str] = []

    def run(self, steps: int) -> None:
        """Make so many steps."""
        for _ in range(steps):
            self._come()
            if self._alive and self._rng.random() < 0.05:
                name = self._alive.pop(self._rng.randrange(len(self._alive)))
                self.engine.abort([name])
            if self._rng.random() < 0.02:
                self.engine.scheduler.reset_prefix_cache()
            self.engine.step()
            meta = self.engine.meta
            self.jobs.append(
                (
                    [_stored(job) for job in meta.store_jobs.values()],
                    [_loaded(job) for job in meta.load_jobs.values()],
                    sorted(meta.jobs_to_flush or ()),
                )
            )

    def _come(self) -> None:
        rng = self._rng
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            shared = 64 * rng.randrange(1, 16)
            own = rng.randrange(1, 200)
            name = f"r{self._count}"
            self._count += 1
            self._alive.append(name)
            self.engine.add(
                name,
                shared + own,
                prefix=f"p{rng.randrange(4)}",
                shared=shared,
                max_tokens=rng.randrange(1, 300),
            )


def _stored(job: Any) -> tuple[object, ...]:
    return job.req_id, job.src_spec.block_ids.tolist(), job.dst_spec.slots


def _loaded(job: Any) -> tuple[object, ...]:
    return job.req_id, job.src_spec.slots, job.dst_spec.block_ids.tolist()
