"""Runs many replays of one trace, one per core; the trace is shared through files that are mapped."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np

from kvtier.sim.jobs import Job
from kvtier.sim.results import ReplayRow
from kvtier.trace.trace import Trace


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
