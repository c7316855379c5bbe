"""The work of an I/O process: operations in, threads that run them, results out."""

import threading
import time
from collections.abc import Sequence
from functools import partial

from kvtier.io_process.asker import Asker
from kvtier.io_process.control import TierControl, guarded
from kvtier.io_process.opqueue import Job, OpQueue
from kvtier.io_process.outbox import Outbox
from kvtier.io_process.records import Records, Served
from kvtier.io_process.wire import IoSetup
from kvtier.types import OpKind, OpResult, OpStatus, ScanBatch, TierOp

_EXPIRE_S = 0.02
_LATE = Served(OpStatus.DEADLINE, error="queued past its deadline")


class Service:
    """Run every operation once and answer it once; no operation stops it.

    `handle`, `expire` and `stop` belong to the main thread; only `stop` waits, for at most its timeout.
    READ, WRITE and REMOVE share the threads through the queue, ASK has its own, the rest has a thread per tier.
    """

    def __init__(self, setup: IoSetup, tiers: Sequence[Records], outbox: Outbox) -> None:
        self._rank = setup.rank
        self._group_nbytes = setup.group_nbytes
        self._outbox = outbox
        self._expire_at = 0.0
        threads = max(2, setup.threads)
        depths = [lower.depth for lower in tiers]
        self._queue = OpQueue(threads, depths, setup.idle_write_bytes_per_s)
        self._tiers = {
            i: TierControl(setup.rank, i, lower, self) for i, lower in enumerate(tiers, 1)
        }
        self._askers = {
            i: Asker(partial(self._answer_question, i))
            for i, lower in enumerate(tiers, 1)
            if lower.asked
        }
        self._threads = [
            threading.Thread(target=self._work, name=f"io-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def handle(self, op: TierOp) -> None:
        """Take one operation in."""
        if op.kind is OpKind.CANCEL:
            self._cancelled([job] if (job := self._queue.cancel(op.target)) else [])
            self.answer(op, Served(OpStatus.OK))
        elif op.kind is OpKind.HASTEN:
            self._queue.hasten(op.target, op.priority)
        elif op.tier not in self._tiers:
            self.answer(op, Served(OpStatus.ERROR, error=f"there is no tier {op.tier} here"))
        elif op.kind is OpKind.ASK and op.tier in self._askers:
            self._askers[op.tier].put(op, self._tiers[op.tier].epoch)
        elif op.kind in (OpKind.READ, OpKind.WRITE, OpKind.REMOVE, OpKind.SCORE):
            nbytes = 0 if op.kind is OpKind.SCORE else self._group_nbytes.get(op.group, 0)
            self._queue.put(Job(op, self._tiers[op.tier].epoch, nbytes))
        else:
            tier = self._tiers[op.tier]
            if op.kind in (OpKind.OPEN, OpKind.RESET):
                self._queue.hold(op.tier, tier.epoch + 1)
                self._cancelled(self._queue.drop(op.tier))
            tier.put(op)

    @property
    def waiting(self) -> bool:
        """Whether an operation is queued."""
        return len(self._queue) > 0

    @property
    def busy(self) -> bool:
        """Whether an operation is queued or runs; any thread."""
        return self._queue.busy

    def expire(self) -> None:
        """Answer the queued reads that are late; looks at them every now and then only."""
        now = time.monotonic()
        if now < self._expire_at:
            return
        self._expire_at = now + _EXPIRE_S
        for job in self._queue.expire():
            self.answer(job.op, _LATE)

    def stop(self, timeout_s: float) -> None:
        """Finish what is in hand and every OPEN and RESET, start nothing else, close the tiers."""
        self._queue.close()
        self._outbox.close()
        until = time.monotonic() + timeout_s
        for tier in self._tiers.values():
            tier.finish()
        for thread in [*self._threads, *(tier.thread for tier in self._tiers.values())]:
            thread.join(max(0.0, until - time.monotonic()))
        for tier in self._tiers.values():
            tier.lower.close()

    def answer(self, op: TierOp, served: Served, seconds: float = 0.0, queued: float = 0.0) -> None:
        """Answer one operation; any thread."""
        self._outbox.add(
            OpResult(
                self._rank,
                op.op,
                served.status,
                served.nbytes,
                seconds,
                served.error,
                served.codec,
                served.score,
                served.free,
                queued,
                served.coded,
                served.found,
            )
        )

    def report(self, batch: ScanBatch) -> bool:
        """Pass a scan batch on, waiting for room; any thread."""
        return self._outbox.add_scan(batch)

    def opened(self, tier: int, epoch: int) -> None:
        """Let the tier's operations run, unless it is about to change again; any thread."""
        self._queue.release(tier, epoch)

    def _answer_question(self, tier: int, op: TierOp, epoch: int, queued: float) -> None:
        lower = self._tiers[tier].lower
        if queued > op.deadline_s:
            self.answer(op, _LATE)
            return
        started = time.monotonic()
        served = guarded(op, lambda: lower.serve(op, epoch), lower.log)
        self.answer(op, served, time.monotonic() - started, queued)

    def _cancelled(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.answer(job.op, Served(OpStatus.CANCELLED))

    def _work(self) -> None:
        while job := self._queue.take():
            op, epoch = job.op, job.epoch
            started = time.monotonic()
            lower = self._tiers[op.tier].lower
            waiting = self._queue.reads if op.kind is OpKind.WRITE else 0
            served = guarded(op, lambda: lower.serve(op, epoch, waiting), lower.log)  # noqa: B023 - called at once
            self._queue.done(job)
            self.answer(op, served, time.monotonic() - started, started - job.at)
