"""The one queue of an I/O process: which operation a free thread takes next.

DEMAND before PREFETCH before WRITE before IDLE, in order of receipt inside each. Writes never take the
last threads, nor the last of a tier's depth, nor does one tier take all threads: a demand read does not
wait behind a hung write or another, hung disk.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvtier.types import OpKind, Priority, TierOp


@dataclass(slots=True)
class Job:
    """One operation on its way; `epoch` says between which resets of its tier it was received."""

    op: TierOp
    epoch: int
    nbytes: int = 0  # what an IDLE write counts against its rate
    order: int = 0
    at: float = 0.0  # when it was received, by the queue's clock


class _Lane(NamedTuple):
    priority: Priority
    tier: int
    reads: bool


class OpQueue:
    """Order jobs for a fixed set of threads. Any thread; the client bounds how many there are."""

    def __init__(
        self,
        threads: int,
        depths: Sequence[int | None],
        idle_bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take per tier how many of its jobs may run at a time; None: as many as leave a thread to each other."""
        self._clock = clock
        self._max_writes = max(1, threads // 2)
        most = max(1, threads - (len(depths) - 1))
        self._depths = {i: min(depth or most, most) for i, depth in enumerate(depths, 1)}
        self._idle_bytes_per_s = idle_bytes_per_s
        self._idle_at = 0.0
        self._changed = threading.Condition()
        self._lanes: dict[_Lane, dict[int, Job]] = {}
        self._running: dict[int, Job] = {}
        self._held: dict[int, int] = {}
        self._read_at: dict[int, float] = {}  # by tier, when the last read of it was done
        self._orders = 0
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._lanes.values()))

    @property
    def busy(self) -> bool:
        """Whether any job is queued or runs."""
        with self._changed:
            return bool(self._running) or any(self._lanes.values())

    @property
    def reads(self) -> int:
        """How many reads are queued that a request waits for."""
        with self._changed:
            return sum(
                len(jobs)
                for lane, jobs in self._lanes.items()
                if lane.reads and lane.priority is Priority.DEMAND
            )

    def put(self, job: Job) -> None:
        """Queue a job."""
        with self._changed:
            self._orders += 1
            job.order = self._orders
            job.at = job.at or self._clock()
            lane = _Lane(job.op.priority, job.op.tier, job.op.kind is OpKind.READ)
            self._lanes.setdefault(lane, {}).setdefault(job.op.op, job)
            self._changed.notify()

    def take(self) -> Job | None:
        """Wait for the next job; None when the queue is closed. The caller says `done` afterwards."""
        with self._changed:
            while not self._closed:
                if job := self._next():
                    self._running[job.op.op] = job
                    return job
                self._changed.wait(self._idle_wait())
        return None

    def done(self, job: Job) -> None:
        """Free the place of a job that `take` returned."""
        with self._changed:
            del self._running[job.op.op]
            if job.op.kind is OpKind.READ:
                self._read_at[job.op.tier] = self._clock()
            self._changed.notify_all()

    def cancel(self, op: int) -> Job | None:
        """Take a queued job out, if it is still there."""
        with self._changed:
            for lane in self._lanes.values():
                if job := lane.pop(op, None):
                    self._changed.notify_all()  # it may have been what an idle write waited for
                    return job
        return None

    def hasten(self, op: int, priority: Priority) -> None:
        """Raise a queued job's priority; it queues behind those already there."""
        if job := self.cancel(op):
            job.op = job.op._replace(priority=min(priority, job.op.priority))
            self.put(job)

    def hold(self, tier: int, epoch: int) -> None:
        """Start nothing more of `tier` until the release of `epoch`."""
        with self._changed:
            self._held[tier] = epoch

    def release(self, tier: int, epoch: int) -> None:
        """Let the jobs of `tier` run again, unless a later epoch holds it by now."""
        with self._changed:
            if self._held.get(tier) == epoch:
                del self._held[tier]
            self._changed.notify_all()

    def drop(self, tier: int) -> list[Job]:
        """Take out every queued job of `tier`."""
        return self._take_out(lambda job: job.op.tier == tier)

    def expire(self) -> list[Job]:
        """Take out every queued read of whose tier none was done for its deadline."""
        now = self._clock()

        def is_late(job: Job) -> bool:
            since = max(job.at, self._read_at.get(job.op.tier, 0.0))
            return job.op.kind is OpKind.READ and since + job.op.deadline_s <= now

        return self._take_out(is_late)

    def close(self) -> None:
        """Start nothing more; wake every waiting thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take_out(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        with self._changed:
            out = []
            for lane in self._lanes.values():
                gone = [job for job in lane.values() if unwanted(job)]
                for job in gone:
                    del lane[job.op.op]
                out += gone
            if out:
                self._changed.notify_all()
        return out

    def _next(self) -> Job | None:
        fronts = [
            (lane.priority, next(iter(jobs.values())).order, lane)
            for lane, jobs in self._lanes.items()
            if jobs and self._may_run(lane)
        ]
        if not fronts:
            return None
        priority, _, lane = min(fronts)
        if priority is Priority.IDLE and not self._is_idle():
            return None
        jobs = self._lanes[lane]
        job = jobs.pop(next(iter(jobs)))
        if priority is Priority.IDLE:
            self._idle_at = max(self._idle_at, self._clock()) + job.nbytes / self._idle_bytes_per_s
        return job

    def _may_run(self, lane: _Lane) -> bool:
        if lane.tier in self._held:
            return False
        depth = self._depths[lane.tier]
        running = [job.op for job in self._running.values()]
        writes = [op.tier for op in running if op.kind is not OpKind.READ]
        if sum(op.tier == lane.tier for op in running) >= depth:
            return False
        few = len(writes) < self._max_writes and writes.count(lane.tier) < depth - depth // 2
        return lane.reads or few

    def _is_idle(self) -> bool:
        busy = any(job.op.priority is not Priority.IDLE for job in self._running.values())
        queued = any(
            jobs and lane.priority is not Priority.IDLE and lane.tier not in self._held
            for lane, jobs in self._lanes.items()
        )
        return not busy and not queued and self._clock() >= self._idle_at

    def _idle_wait(self) -> float | None:
        """How long to wait for the rate of idle writes at most; None: until something changes."""
        waiting = any(jobs and lane.priority is Priority.IDLE for lane, jobs in self._lanes.items())
        seconds = self._idle_at - self._clock()
        return seconds if waiting and seconds > 0 else None
