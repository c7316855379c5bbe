"""Operations on their way: each is answered once by every rank, then it has ended."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from kvtier.types import OpKind, OpResult, OpStatus, Priority, TierOp

_AWAKE_S = 1.0
_STARTS = (OpKind.OPEN, OpKind.RESET)
_IN_NO_HURRY = (OpKind.PROBE, OpKind.ROOM)

_SEVERITY = {
    status: i
    for i, status in enumerate(
        (
            OpStatus.OK,
            OpStatus.NO_ROOM,
            OpStatus.CANCELLED,
            OpStatus.DEADLINE,
            OpStatus.DIED,
            OpStatus.ERROR,
            OpStatus.MISSING,
            OpStatus.CORRUPT,
        )
    )
}


@dataclass(slots=True)
class Operation:
    """One operation and what the ranks said so far: the worst status, the largest numbers."""

    op: TierOp
    epoch: int
    left: int  # one bit per rank that has not answered
    priority: Priority
    status: OpStatus = OpStatus.OK
    nbytes: int = 0
    total: int = 0  # bytes of all ranks
    seconds: float = 0.0
    queued: float = 0.0
    coded: float = 0.0
    codec: str = ""  # WRITE: of the record
    score: float = 0.0
    found: int = 0  # ASK: what the one rank says that looks
    free: int | None = (
        None  # what the fullest medium still takes, -1: nobody can say; None: no rank was full
    )

    @property
    def ok(self) -> bool:
        """Whether every rank that answered said OK."""
        return self.status is OpStatus.OK


class Operations:
    """Number, send and track operations."""

    def __init__(self, ranks: int, clock: Callable[[], float]) -> None:
        self.epoch = 0
        self.moved = clock()
        self.ranks = ranks
        self._ranks = (1 << ranks) - 1
        self._clock = clock
        self._next = 1
        self._flying: dict[int, Operation] = {}
        self._outbox: list[TierOp] = []
        self._busy = 0  # operations that keep the engine awake
        self._eager = False  # the outbox holds one of these

    def __len__(self) -> int:
        return len(self._flying)

    def number(self) -> int:
        """Return the number of the next operation."""
        self._next += 1
        return self._next

    def order(self, op: TierOp) -> Operation:
        """Send an operation that every rank answers."""
        operation = Operation(op, self.epoch, self._ranks, op.priority)
        self._flying[op.op] = operation
        self._outbox.append(op)
        if _keeps_awake(operation):
            self._busy += 1
            self._eager = True
            self.moved = self._clock()
        return operation

    def cancel(self, operation: Operation) -> None:
        """Ask the ranks to drop an operation; it is still answered."""
        self._outbox.append(TierOp(self.number(), OpKind.CANCEL, target=operation.op.op))

    def hasten(self, operation: Operation, priority: Priority) -> None:
        """Raise a queued operation; one that already runs does not mind."""
        if priority >= operation.priority:
            return
        slept = not _keeps_awake(operation)
        operation.priority = priority
        if slept:
            self._busy += 1
            self._eager = True
            self.moved = self._clock()
        op = TierOp(self.number(), OpKind.HASTEN, target=operation.op.op, priority=priority)
        self._outbox.append(op)

    def answer(self, result: OpResult) -> Operation | None:
        """Take one rank's answer; return the operation if it was the last, None for all that is unknown."""
        operation = self._flying.get(result.op)
        bit = 1 << result.rank
        if operation is None or not operation.left & bit:
            return None
        operation.left &= ~bit
        operation.nbytes = max(operation.nbytes, result.nbytes)
        operation.total += result.nbytes
        operation.seconds = max(operation.seconds, result.seconds)
        operation.queued = max(operation.queued, result.queued)
        operation.coded = max(operation.coded, result.coded)
        operation.codec = result.codec or operation.codec
        operation.score = max(result.score, operation.score)  # a NaN stays one
        operation.found = max(operation.found, result.found)
        if result.status is OpStatus.NO_ROOM or operation.op.kind is OpKind.ROOM:
            known = result.free if operation.free is None else operation.free
            operation.free = min(known, result.free)
        if _SEVERITY[result.status] > _SEVERITY[operation.status]:
            operation.status = result.status
        if _keeps_awake(operation):
            self.moved = self._clock()
        if operation.left:
            return None
        del self._flying[result.op]
        self._busy -= _keeps_awake(operation)
        return operation

    def drain(self) -> list[TierOp]:
        """Take the operations to send."""
        out, self._outbox = self._outbox, []
        if self._eager:
            self._eager = False
            self.moved = self._clock()
        return out

    def awake(self) -> bool:
        """Whether something that matters is to be sent, or is under way and moved within the last second."""
        return self._eager or (self._busy > 0 and self._clock() - self.moved <= _AWAKE_S)

    def end_epoch(self) -> tuple[list[Operation], list[Operation]]:
        """Begin a new epoch; return what is under way of the old ones, and what was never sent.

        What was not sent never will be, but for the starts of tiers.
        """
        self.epoch += 1
        kept = [op for op in self._outbox if op.kind in _STARTS]
        dropped = [op.op for op in self._outbox if op.kind not in _STARTS]
        unsent = [self._flying.pop(op) for op in dropped if op in self._flying]
        self._outbox = kept
        self._busy = sum(map(_keeps_awake, self._flying.values()))
        self._eager = bool(kept)
        return list(self._flying.values()), unsent

    def all(self) -> Collection[Operation]:
        """List everything under way, of every epoch."""
        return self._flying.values()


def _keeps_awake(operation: Operation) -> bool:
    return operation.priority is not Priority.IDLE and operation.op.kind not in _IN_NO_HURRY
