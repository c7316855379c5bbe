"""One tier's own thread: what must not overlap (OPEN, RESET, RECLAIM, PROBE, ROOM), and its scans beside it."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from kvtier.errors import TierError
from kvtier.io_process.records import Records, Served, Session
from kvtier.limited_log import LimitedLog
from kvtier.tier import Entry
from kvtier.types import OpKind, OpStatus, ScanBatch, TierOp

logger = logging.getLogger(__name__)

SCAN_BATCH = 8192


class Speaker(Protocol):
    """Who takes answers and scans; any thread."""

    def answer(self, op: TierOp, served: Served, seconds: float = 0.0) -> None:
        """Answer one operation."""

    def report(self, batch: ScanBatch) -> bool:
        """Pass a scan batch on, waiting for room; False: nobody listens any more."""

    def opened(self, tier: int, epoch: int) -> None:
        """Let the operations of `epoch` run: the tier is open, or will not be."""


class TierControl:
    """Run one tier's control operations in the order of their receipt.

    `put`, `finish` and `epoch` belong to the main thread. The queue is bounded by the client's pending operations.
    """

    def __init__(self, rank: int, index: int, lower: Records, speaker: Speaker) -> None:
        self.lower = lower
        self.epoch = 0
        self._rank = rank
        self._index = index
        self._speaker = speaker
        self._queue: queue.SimpleQueue[tuple[TierOp, int] | None] = queue.SimpleQueue()
        self._finishing = False
        self.thread = threading.Thread(target=self._work, name=f"tier-{index}", daemon=True)
        self.thread.start()

    def put(self, op: TierOp) -> None:
        """Queue a control operation; one that changes the namespace begins a new epoch."""
        if op.kind in (OpKind.OPEN, OpKind.RESET):
            self.epoch += 1
        self._queue.put((op, self.epoch))

    def finish(self) -> None:
        """Let the thread end after the changes that are queued: a RESET must not be lost."""
        self._finishing = True
        self._queue.put(None)

    def _work(self) -> None:
        while item := self._queue.get():
            op, epoch = item
            if self._finishing and op.kind not in (OpKind.OPEN, OpKind.RESET):
                continue
            started = time.monotonic()
            served = guarded(op, lambda: self._run(op, epoch), self.lower.log)  # noqa: B023 - called at once
            self._speaker.answer(op, served, time.monotonic() - started)

    def _run(self, op: TierOp, epoch: int) -> Served:
        if op.kind in (OpKind.OPEN, OpKind.RESET):
            return self._change(op, epoch)
        if op.kind is OpKind.RECLAIM:
            return Served(OpStatus.OK, self.lower.reclaim(op.nbytes))
        if op.kind is OpKind.ROOM:
            return Served(OpStatus.OK, free=self.lower.free(op.nbytes))
        opening = self.lower.probe()
        if opening is None or self.lower.asked:
            return Served(OpStatus.OK)
        self._start_scan(opening, 0)
        gone = next(self.lower.scan(self.lower.session), None) is None
        return Served(OpStatus.MISSING if gone else OpStatus.OK)

    def _change(self, op: TierOp, epoch: int) -> Served:
        try:
            self.lower.change(op, epoch)
        finally:
            self._speaker.opened(self._index, epoch)
        foreign = 0
        if self.lower.asked:
            return Served(OpStatus.OK)
        try:
            foreign = self.lower.reclaim(0)
        except TierError as exc:
            logger.warning("foreign namespaces are not counted: %s", exc)
        if op.kind is OpKind.OPEN:
            self._start_scan(op.op, foreign)
        return Served(OpStatus.OK, foreign)

    def _start_scan(self, opening: int, foreign: int) -> None:
        args = (opening, self.lower.session, foreign)
        threading.Thread(target=self._scan, args=args, daemon=True).start()

    def _scan(self, opening: int, session: Session | None, held: int) -> None:
        """List what was there when `session` began, for the OPEN `opening`; `held` are bytes of others.

        A list that is cut short says nothing of its end: whoever opened the tier anew lists it anew.
        """
        entries, free = self._entries(session), self._free()
        while True:
            some = list(islice(entries, SCAN_BATCH))
            if self.lower.session is not session:
                return
            done = len(some) < SCAN_BATCH
            held += sum(entry.nbytes for entry in some)
            keys, nbytes, mtimes = [list(column) for column in zip(*some, strict=True)] or ([],) * 3
            batch = ScanBatch(self._rank, self._index, opening, keys, nbytes, mtimes, done)
            if not self._speaker.report(batch) or done:
                self.lower.judge_room(free, held)
                return

    def _free(self) -> int:
        try:
            return self.lower.free(self.lower.largest)
        except TierError:
            return -1

    def _entries(self, session: Session | None) -> Iterator[Entry]:
        try:
            yield from self.lower.scan(session)
        except TierError as exc:
            logger.warning("the scan ends early: %s", exc)


def guarded(op: TierOp, run: Callable[[], Served], log: LimitedLog) -> Served:
    """Run one operation; whatever it raises is its answer, and a line in the log, one per cause in a while."""
    what = op.key.hex() or "tier"
    try:
        return run()
    except TierError as exc:
        log.warning(_cause(op, exc.__cause__), "%s of %s failed: %s", op.kind.name, what, exc)
        return Served(OpStatus.NO_ROOM if exc.full else OpStatus.ERROR, error=str(exc))
    except Exception as exc:
        log.traced(_cause(op, exc), "%s of %s failed", op.kind.name, what)
        return Served(OpStatus.ERROR, error=repr(exc))


def _cause(op: TierOp, exc: BaseException | None) -> tuple[object, ...]:
    """What makes two failures the same for a log."""
    return op.kind, type(exc), exc.errno if isinstance(exc, OSError) else None
