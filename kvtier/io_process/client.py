"""The worker's end of its I/O process: operations go out, results come in, and death is survived.

Lives on the worker's main thread, so nothing here waits but `wait_ready` and `close`. Every operation
is answered exactly once, whatever happens to the process.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from kvtier.errors import ConfigError
from kvtier.io_process import wire
from kvtier.io_process.child import Child
from kvtier.io_process.namespaces import Namespaces
from kvtier.io_process.window import Window
from kvtier.io_process.wire import Frame, FrameKind, IoSetup
from kvtier.types import OpKind, OpResult, OpStatus, Placed, ScanBatch, TierOp

__all__ = ["IoClient", "IoSetup"]

logger = logging.getLogger(__name__)

_START_S = 120.0  # only what hangs takes longer, on a busy machine too
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 30.0
_MAX_UNSENT = 4 << 20


class IoClient:
    """Start an I/O process, keep it alive, and answer for it while it is not. One thread.

    Pending operations are bounded by `setup.queue` per tier for READ and WRITE, by twice that for all; beyond,
    they are answered CANCELLED: that is nobody's fault. Reads wait here while the process has a `Window` of them.
    While there is no process operations are answered DIED, but OPEN and RESET, which wait for the next one.
    """

    def __init__(
        self, setup: IoSetup, arena_fd: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._setup = setup
        self._arena_fd = arena_fd
        self._clock = clock
        self._pending: dict[int, TierOp] = {}
        self._doomed: dict[int, TierOp] = {}  # what the process that is dying still had
        self._windows = {
            i: Window(int(str(tier.get("depth") or setup.threads)), clock)
            for i, tier in enumerate(setup.tiers, 1)
        }
        self._answers: list[OpResult | ScanBatch] = []
        self._replay = Namespaces()
        # By tier, the OPEN whose list is awaited: its number for the brain, and for the process as last told.
        self._lists: dict[int, tuple[int, int]] = {}
        self.placed: list[Placed] = []  # where its memory is, as it last said
        self._refusal = ""
        self._ready_at = math.inf
        self._backoff_s = _FIRST_BACKOFF_S
        self._restart_at = 0.0
        self._child: Child | None = Child(setup, arena_fd)

    @property
    def alive(self) -> bool:
        """Whether the process is there and takes operations."""
        return self._ready_at < math.inf

    @property
    def pid(self) -> int | None:
        """Process id, if there is a process now."""
        return self._child.pid if self._child else None

    def processor_seconds(self) -> float | None:
        """Return the processor time that the process has had since it started; None if there is none now."""
        return self._child.processor_seconds() if self._child else None

    @property
    def pending(self) -> int:
        """How many operations are not answered yet."""
        return len(self._pending) + len(self._doomed)

    def awaits(self, number: int) -> bool:
        """Whether an operation is not answered yet."""
        return number in self._pending or number in self._doomed

    def wait_ready(self, timeout_s: float = _START_S) -> None:
        """Wait until the process has its tiers; blocks, so for the start of the engine only.

        A process that hangs, as on a disk that does not answer, takes its operations when it is ready: until then its
        tiers are closed.

        Raises:
            ConfigError: it cannot work, in its own words.
        """
        until = self._clock() + timeout_s
        while self._child and not self.alive and self._clock() < until:
            self._child.wait(0.05)
            self._exchange(self._child)
            if self._child.broken:
                self.close()
                ended = "the I/O process ended while it started; its log says why"
                raise ConfigError(self._refusal or ended)
        if not self.alive:
            said = "the I/O process is not ready after %g s: the engine starts, its lower tiers are closed until then"
            logger.warning(said, timeout_s)

    def submit(self, ops: Sequence[TierOp]) -> None:
        """Queue operations, and send what goes without waiting."""
        self._hand_over([op for op in ops if self._accepts(op)])

    def poll(self) -> list[OpResult | ScanBatch]:
        """Return what came in, at most one scan batch a call; bury and restart a process that died."""
        if self._child:
            self._exchange(self._child)
            self._watch_reads()
            if self._child.broken:
                self._bury(self._child)
        elif self._clock() >= self._restart_at:
            self._restart()
        answers, self._answers = self._answers, []
        return answers

    def close(self, timeout_s: float = 1.0) -> None:
        """Let the process finish what it has in hand, for at most `timeout_s`; idempotent."""
        if self._child:
            self._child.send()
            self._child.leave(timeout_s)
            self._child = None
        self._restart_at = math.inf
        self._ready_at = math.inf
        self._doomed |= self._pending
        self._pending = {}
        self._answer_died()

    def _accepts(self, op: TierOp) -> bool:
        """Whether to send `op` now; otherwise it is answered, or waits for the next process."""
        if op.kind in (OpKind.HASTEN, OpKind.CANCEL) and self._reaches(op):
            return False
        if op.kind is OpKind.HASTEN:
            return self.alive and self._child is not None and len(self._child.unsent) < _MAX_UNSENT
        changes = op.kind in (OpKind.OPEN, OpKind.RESET)
        each = 1 if op.kind in (OpKind.READ, OpKind.WRITE) else 2
        bound = self._setup.queue * len(self._setup.tiers) * each
        if not self.alive and not changes:
            self._answer(op.op, OpStatus.DIED, "there is no I/O process now")
        elif self.pending >= bound:
            self._answer(op.op, OpStatus.CANCELLED, "queue full")
        else:
            self._pending[op.op] = op
            if changes:
                self._replay.record(op, self._pending)
                self._lists.pop(op.tier, None)
                self._drop_reads(op.tier, OpStatus.CANCELLED, "the tier changes its namespace")
            if op.kind is OpKind.OPEN:
                self._lists[op.tier] = (op.op, op.op)
            if op.kind is OpKind.READ and op.tier in self._windows:
                self._windows[op.tier].offer(op)
                return False
            return self.alive
        return False

    def _hand_over(self, ops: list[TierOp]) -> None:
        """Send operations, and the reads that fit into their windows now."""
        if self.alive:
            for window in self._windows.values():
                ops += window.take()
        if ops and self._child:
            self._child.unsent += wire.frame(FrameKind.OPS, ops)
            self._child.send()

    def _reaches(self, op: TierOp) -> bool:
        """Let HASTEN or CANCEL act on a read that waits here; False where there is none."""
        target = self._pending.get(op.target)
        window = self._windows.get(target.tier) if target else None
        if window is None:
            return False
        if op.kind is OpKind.HASTEN:
            return window.hasten(op.target, op.priority)
        if not window.cancel(op.target):
            return False
        self._end_here([op.target], OpStatus.CANCELLED, "")
        self._answer(op.op, OpStatus.OK, "")
        return True

    def _watch_reads(self) -> None:
        """End the reads that waited too long, and let others follow those that were answered."""
        for window in self._windows.values():
            window.adjust()
            self._end_here(window.late(), OpStatus.DEADLINE, "waited past its deadline")
        self._hand_over([])

    def _drop_reads(self, tier: int, status: OpStatus, why: str) -> None:
        if tier in self._windows:
            self._end_here(self._windows[tier].drop(), status, why)

    def _end_here(self, numbers: Iterable[int], status: OpStatus, why: str) -> None:
        for number in numbers:
            del self._pending[number]
            self._answer(number, status, why)

    def _exchange(self, child: Child) -> None:
        child.send()
        child.receive()
        try:
            for frame in child.inbox.frames():
                if self._take(frame):
                    return
        except (ValueError, msgspec.MsgspecError) as exc:
            logger.warning("the I/O process talks nonsense: %s", exc)
            child.broken = True

    def _take(self, frame: Frame) -> bool:
        """Take one frame in and return whether that was enough for one call."""
        if frame.kind == FrameKind.RESULTS:
            for result in wire.RESULTS.decode(frame.body):
                self._settle(result)
        elif frame.kind == FrameKind.SCAN:
            return self._take_scan(wire.SCAN.decode(frame.body))
        elif frame.kind == FrameKind.PLACED:
            self.placed = wire.PLACED.decode(frame.body)
        elif frame.kind == FrameKind.HELLO:
            self._greet(wire.HELLO.decode(frame.body).error)
        return False

    def _settle(self, result: OpResult) -> None:
        if result.status is OpStatus.OK:
            self._replay.acknowledge(result.op)
        if op := self._pending.pop(result.op, None):
            self._answers.append(result)
            if op.kind is OpKind.READ and op.tier in self._windows:
                self._windows[op.tier].ended(op.op)

    def _take_scan(self, batch: ScanBatch) -> bool:
        awaited, told = self._lists.get(batch.tier, (None, None))
        if awaited is None or batch.op != told:
            return False  # the brain knows these, or asked again since
        if batch.done:
            del self._lists[batch.tier]
        self._answers.append(batch._replace(op=awaited))
        return True

    def _greet(self, error: str) -> None:
        assert self._child
        if error:
            logger.warning("the I/O process refuses: %s", error)
            self._refusal = error
            self._child.broken = True
            return
        self._ready_at = self._clock()
        told = self._replay.ops(self._pending)
        for op in told:
            if op.kind is OpKind.OPEN and op.tier in self._lists:
                self._lists[op.tier] = (self._lists[op.tier][0], op.op)
        if told:
            self._child.unsent += wire.frame(FrameKind.OPS, told)
            self._child.send()

    def _bury(self, child: Child) -> None:
        """Make sure it is dead; only then may its slots be used again, so only then answer."""
        if not child.killed:
            child.kill()
            for tier, window in self._windows.items():
                self._drop_reads(tier, OpStatus.DIED, "the I/O process never had it")
                window.forget()
            self._doomed, self._pending = self._pending, {}
            if self._clock() - self._ready_at > _LAST_BACKOFF_S:
                self._backoff_s = _FIRST_BACKOFF_S
            self._ready_at = math.inf
        if not child.reaped():
            return
        logger.warning(
            "the I/O process %d died; the next starts in %.1f s", child.pid, self._backoff_s
        )
        child.close()
        self._child = None
        self._restart_at = self._clock() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, _LAST_BACKOFF_S)
        self._answer_died()

    def _restart(self) -> None:
        self._restart_at = self._clock() + self._backoff_s
        try:
            self._child = Child(self._setup, self._arena_fd)
        except OSError as exc:
            logger.warning("the I/O process cannot be started: %s", exc)
            self._backoff_s = min(2 * self._backoff_s, _LAST_BACKOFF_S)

    def _answer_died(self) -> None:
        doomed, self._doomed = self._doomed, {}
        for op in doomed:
            self._answer(op, OpStatus.DIED, "the I/O process died")

    def _answer(self, op: int, status: OpStatus, error: str) -> None:
        self._answers.append(OpResult(self._setup.rank, op, status, error=error))
