"""The tiers below, simulated: every operation of the brain is answered after the time that it takes.

A tier is two channels, one per direction. A channel serves one batch after the other, most urgent first, at
its bandwidth; an answer comes one latency after its bytes. Write-behind is bounded as in the I/O process.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from kvtier.config import MediumConfig
from kvtier.sim.timeline import Timeline
from kvtier.types import PAGE, OpKind, OpResult, OpStatus, Priority, TierOp

_BATCH_S = 1e-3  # of transfer, answered together: fewer events, no visible error
_BATCH = 16  # operations
_RANK = 0


@dataclass(slots=True)
class _Queued:
    op: TierOp
    at_s: float
    priority: Priority
    left: bool = False  # cancelled, or queued again with another priority


@dataclass(slots=True)
class _Channel:
    """One direction of one tier."""

    bandwidth: float
    latency_s: float
    idle_rate: float = 0.0  # bytes per second of write-behind, 0: unbounded
    queue: list[tuple[int, int, _Queued]] = field(default_factory=list)
    busy: bool = False
    idle_at: float = 0.0  # when write-behind may go on
    waking: bool = False
    nbytes: int = 0
    busy_s: float = 0.0
    moved_s: float = 0.0  # when it served something last


class Media:
    """All lower tiers of one rank."""

    def __init__(
        self,
        timeline: Timeline,
        tiers: list[MediumConfig],
        *,
        idle_rate: float,
        raw_nbytes: int,
        answer: Callable[[list[OpResult]], None],
    ) -> None:
        self._timeline = timeline
        self._answer = answer
        self._reads = [_Channel(tier.read, tier.latency_s) for tier in tiers]
        self._writes = [_Channel(tier.write, tier.latency_s, idle_rate) for tier in tiers]
        self._record = [PAGE + int(raw_nbytes * tier.ratio) for tier in tiers]
        self._queued: dict[int, _Queued] = {}

    def submit(self, ops: list[TierOp]) -> None:
        """Take what the brain orders."""
        for op in ops:
            match op.kind:
                case OpKind.READ | OpKind.WRITE:
                    self._enqueue(op, op.priority, self._timeline.now)
                case OpKind.CANCEL:
                    self._cancel(op)
                case OpKind.HASTEN:
                    self._hasten(op)
                case _:
                    self._after(op, 0, self._writes[op.tier - 1].latency_s)

    def _enqueue(self, op: TierOp, priority: Priority, at_s: float) -> None:
        queued = self._queued[op.op] = _Queued(op, at_s, priority)
        channel = (self._reads if op.kind is OpKind.READ else self._writes)[op.tier - 1]
        heappush(channel.queue, (priority, op.op, queued))
        self._serve(channel)

    def _cancel(self, op: TierOp) -> None:
        queued = self._queued.pop(op.target, None)
        if queued is not None:
            queued.left = True
            self._after(queued.op, 0, 0, OpStatus.CANCELLED)

    def _hasten(self, op: TierOp) -> None:
        queued = self._queued.pop(op.target, None)
        if queued is not None:
            queued.left = True
            self._enqueue(queued.op, op.priority, queued.at_s)

    def _serve(self, channel: _Channel) -> None:
        """Start the next batch, if the channel is free and something may go."""
        if channel.busy:
            return
        batch: list[_Queued] = []
        seconds = 0.0
        while channel.queue and len(batch) < _BATCH and seconds < _BATCH_S:
            queued = channel.queue[0][2]
            if queued.left:
                heappop(channel.queue)
                continue
            if queued.priority is Priority.IDLE and not self._may_idle(channel):
                break
            heappop(channel.queue)
            del self._queued[queued.op.op]
            if self._late(channel, queued):
                self._after(queued.op, 0, 0, OpStatus.DEADLINE)
                continue
            nbytes = self._record[queued.op.tier - 1]
            seconds += nbytes / channel.bandwidth
            if queued.priority is Priority.IDLE and channel.idle_rate:
                channel.idle_at = (
                    max(channel.idle_at, self._timeline.now) + nbytes / channel.idle_rate
                )
            batch.append(queued)
        if batch:
            channel.busy = True
            channel.busy_s += seconds
            self._timeline.after(seconds, partial(self._served, channel, batch))

    def _late(self, channel: _Channel, queued: _Queued) -> bool:
        silent = self._timeline.now - max(queued.at_s, channel.moved_s)
        return queued.op.kind is OpKind.READ and silent > queued.op.deadline_s

    def _may_idle(self, channel: _Channel) -> bool:
        if channel.idle_at <= self._timeline.now:
            return True
        if not channel.waking:
            channel.waking = True
            self._timeline.at(channel.idle_at, partial(self._wake, channel))
        return False

    def _wake(self, channel: _Channel) -> None:
        channel.waking = False
        self._serve(channel)

    def _served(self, channel: _Channel, batch: list[_Queued]) -> None:
        channel.busy = False
        channel.moved_s = self._timeline.now
        results = []
        for queued in batch:
            nbytes = self._record[queued.op.tier - 1]
            channel.nbytes += nbytes
            seconds = channel.latency_s + nbytes / channel.bandwidth
            results.append(OpResult(_RANK, queued.op.op, OpStatus.OK, nbytes, seconds))
        self._timeline.after(channel.latency_s, partial(self._answer, results))
        self._serve(channel)

    def _after(
        self, op: TierOp, nbytes: int, seconds: float, status: OpStatus = OpStatus.OK
    ) -> None:
        result = OpResult(_RANK, op.op, status, nbytes, seconds)
        self._timeline.after(seconds, partial(self._answer, [result]))
