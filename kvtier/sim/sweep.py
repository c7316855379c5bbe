"""Runs many replays of one trace, one per core; the trace is shared through files that are mapped."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np

from kvtier.config import Plugin
from kvtier.sim.belady import belady, infinite
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.sim.results import ReplayRow
from kvtier.sim.setting import Prefill, worth
from kvtier.sim.tiers import TierJob
from kvtier.trace.trace import Trace

BELADY, INFINITE = "belady", "infinite"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """One block-level replay. `eviction` None: the ceiling, of `capacity_tokens` or of no bound."""

    name: str
    eviction: Plugin | None
    capacity_tokens: int | None
    below_tokens: int = 0  # that Belady has besides, in lower tiers
    nbytes_per_token: int
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
            config = one_tier(self.eviction)
            slots = self.capacity_tokens // trace.block_tokens
            done = replay_blocks(
                trace, config, slots=slots, block_nbytes=nbytes, prefill=self.prefill
            )
            hits = done.hits
            moved = {"dram_in": done.stats.stores * nbytes, "dram_out": done.stats.loads * nbytes}
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


Job = BlockJob | TierJob


def sweep(
    trace: Trace, jobs: Sequence[Job], *, workers: int, done: Callable[[], None]
) -> list[ReplayRow]:
    """Run the jobs, `workers` at a time, and return their rows in order; `done` is called after each.

    With one worker everything runs in this process.
    """
    if workers <= 1 or len(jobs) == 1:
        rows = []
        for job in jobs:
            rows.append(job.run(trace))
            done()
        return rows
    with TemporaryDirectory(prefix="kvtier-replay-") as directory:
        save(trace, Path(directory))
        with _pool(workers, directory) as pool:
            futures = [pool.submit(_run, job) for job in jobs]
            for _ in as_completed(futures):
                done()
            return [future.result() for future in futures]


def save(trace: Trace, directory: Path) -> None:
    """Write a trace's columns, one file each."""
    for field in fields(trace):
        np.save(directory / f"{field.name}.npy", getattr(trace, field.name))


def open_saved(directory: Path) -> Trace:
    """Map what `save` wrote."""
    columns = {
        field.name: np.load(directory / f"{field.name}.npy", mmap_mode="r")
        for field in fields(Trace)
    }
    return Trace(**{**columns, "block_tokens": int(columns["block_tokens"])})


_trace: Trace | None = None  # of a worker process, for its whole life


def _open(directory: str) -> None:
    global _trace
    _trace = open_saved(Path(directory))
    Thread(target=_leave_with_the_parent, daemon=True).start()


def _leave_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(job: Job) -> ReplayRow:
    assert _trace is not None
    return job.run(_trace)


@contextmanager
def _pool(workers: int, directory: str) -> Iterator[ProcessPoolExecutor]:
    """Start fresh interpreters: the progress bar has a thread, and threads do not fork. They end with us, and at once."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_open, initargs=(directory,))
    try:
        yield pool
    except BaseException:  # Ctrl-C too
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
