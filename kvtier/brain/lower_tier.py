"""One tier below the arena as the brain accounts it: its bytes, its health, its records under way."""

from collections.abc import Callable
from enum import StrEnum

from kvtier.brain.breaker import Breaker
from kvtier.brain.cost import ReadCost
from kvtier.brain.counters import TierCounters
from kvtier.brain.groups import Place
from kvtier.brain.operations import Operation, Operations
from kvtier.brain.plans import TierSpec
from kvtier.brain.residency import Residency
from kvtier.hook import HookKind
from kvtier.policy import AdmissionPolicy
from kvtier.types import BlockKey, OpKind, OpStatus, Priority, TierOp

_GONE = (OpStatus.MISSING, OpStatus.CORRUPT)
_NOT_ITS_FAULT = (*_GONE, OpStatus.CANCELLED)
_RETRY_S = 1.0
_STALLED_S = 1.0


class Phase(StrEnum):
    """Whether the ranks have the tier under the current namespace."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


class LowerTier:
    """`used` counts every byte that may be on the medium: records, those being written at their worst
    case, and those not removed on every rank yet. At most one operation per record is under way.
    """

    def __init__(
        self,
        tier: int,
        spec: TierSpec,
        residency: Residency,
        operations: Operations,
        clock: Callable[[], float],
    ) -> None:
        self.tier = tier
        self.spec = spec
        self.admission: AdmissionPolicy | None = None  # made after: it asks for this tier's facts
        self.breaker = Breaker(clock)
        self.cost = ReadCost(clock, spec.medium)
        self.counters = TierCounters()
        self.phase = Phase.CLOSED
        self.ops: dict[BlockKey, Operation] = {}
        self.reserved: dict[BlockKey, int] = {}  # by WRITE and REMOVE under way
        self.doomed: dict[BlockKey, int] = {}  # to be removed, and their bytes
        self.changed: set[BlockKey] | None = None  # written since the scan began, while it lasts
        self.used = 0
        self.foreign = 0
        self.listed = 0  # of `used`: found by the scan and not taken in yet
        self.removing = 0  # of `used`: by REMOVE under way
        self.wanted = 0  # bytes that a write was refused for
        self.demotions = 0  # WRITE under way that a slot waits for, or soon will
        self.idles = 0  # WRITE under way at leisure
        self.remove_at = 0.0  # when doomed records are tried again
        self._moved = clock()
        self._over = 0  # bytes above capacity that were there before us
        self._residency = residency
        self._operations = operations
        self._clock = clock

    @property
    def serving(self) -> bool:
        """Whether it may be read and written now."""
        return self.phase is Phase.OPEN and self.breaker.closed

    @property
    def stalled(self) -> bool:
        """Whether operations are under way and none was answered for a while."""
        return bool(self.ops) and self._clock() - self._moved > _STALLED_S

    @property
    def removes(self) -> int:
        """How many REMOVE are under way."""
        return len(self.reserved) - self.demotions - self.idles

    @property
    def free(self) -> int:
        """Bytes that a write may reserve."""
        return self.spec.capacity - self.used - self.foreign

    def clear(self) -> None:
        """Forget all of it: the ranks start anew."""
        for table in (self.ops, self.reserved, self.doomed):
            table.clear()
        self.changed = None
        self.used = self.listed = self.removing = self.wanted = 0
        self.demotions = self.idles = self._over = 0

    def accepts(self, key: BlockKey, end: int, nbytes: int) -> bool:
        """Whether a record may be written now; if only room lacks, it is made for a later one."""
        if not self.serving or key in self.ops or key in self.doomed:
            return False
        if self.admission is not None and not self.admission.admits(key, end):
            return False
        if self.free < nbytes:
            self.wanted = max(self.wanted, nbytes)
            return False
        return self._residency.hooks.agree(HookKind.INSERT, self.tier, key)

    def fail(self, status: OpStatus) -> None:
        """Count a failure; only what the medium did wrong tries the breaker."""
        failures = self.counters.failures
        failures[status] = failures.get(status, 0) + 1
        if status not in _NOT_ITS_FAULT:
            self.breaker.failed()

    def resize(self, nbytes: int) -> None:
        """Account bytes that were not reserved: they may exceed the capacity."""
        self.used += nbytes
        excess = max(0, -self.free)
        self._over = excess if nbytes > 0 else min(self._over, excess)

    def set_foreign(self, nbytes: int) -> None:
        """Note the bytes of other namespaces on the same medium."""
        self.foreign = nbytes
        self._over = max(0, -self.free)

    def write(self, key: BlockKey, place: Place, group: int, nbytes: int, idle: bool) -> None:
        """Order the record of a resident chunk; its worst case of bytes is reserved."""
        slot = self._residency.index.slots[self._residency.index.rows[key]]
        self._residency.slots.use(slot)
        if self.changed is not None:
            self.changed.add(key)
        priority = Priority.IDLE if idle else Priority.WRITE
        self._order(OpKind.WRITE, key, place, slot, group, priority)
        self.reserved[key] = nbytes
        self.used += nbytes
        self.idles += idle
        self.demotions += not idle

    def hasten(self, operation: Operation) -> None:
        """Turn a leisurely write into one that a slot waits for."""
        if operation.priority is Priority.IDLE:
            self._operations.hasten(operation, Priority.WRITE)
            self.idles -= 1
            self.demotions += 1

    def read(
        self, key: BlockKey, place: Place, slot: int, group: int, priority: Priority
    ) -> Operation:
        """Order a record into a slot."""
        return self._order(OpKind.READ, key, place, slot, group, priority)

    def remove(self, key: BlockKey, nbytes: int) -> None:
        """Order a record off every rank; its bytes stay used until then."""
        self._order(OpKind.REMOVE, key, Place(None, 0), -1, 0, Priority.WRITE)
        self.reserved[key] = nbytes
        self.removing += nbytes

    def wrote(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer to WRITE: a record on every rank, or none anywhere."""
        self._end(key)
        reserved = self.reserved.pop(key)
        idle = operation.priority is Priority.IDLE
        self.idles -= idle
        self.demotions -= not idle
        if operation.ok:
            self.breaker.succeeded()
            self.counters.written.add(operation.nbytes, operation.seconds)
            if operation.codec:
                written = self.counters.codecs
                written[operation.codec] = written.get(operation.codec, 0) + 1
            self.resize(operation.nbytes - reserved)
        else:
            self.fail(operation.status)
            self.doomed[key] = reserved

    def answered(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer to READ; a record that is gone or bad on any rank goes on all."""
        self._end(key)
        if operation.ok:
            self.breaker.succeeded()
            self.cost.served(operation.seconds)
            self.counters.read.add(operation.nbytes, operation.seconds)
        elif operation.status is not OpStatus.CANCELLED:
            self.fail(operation.status)
            if operation.status in _GONE:
                self.doomed[key] = self._residency.erase(self.tier, key)

    def removed(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer to REMOVE: its bytes are free, or it is tried again later."""
        self._end(key)
        nbytes = self.reserved.pop(key)
        self.removing -= nbytes
        if operation.ok:
            self.resize(-nbytes)
        else:
            self.fail(operation.status)
            self.doomed[key] = nbytes
            self.remove_at = self._clock() + _RETRY_S

    def check(self, records: int) -> None:
        """Assert that the bytes add up, `records` being those of the records that it holds."""
        name = self.spec.name
        parts = records + sum(self.reserved.values()) + sum(self.doomed.values()) + self.listed
        assert self.used == parts, f"{name}: {self.used} bytes used, {parts} known"
        assert -self.free <= self._over, f"{name}: over its capacity"
        assert not self.doomed.keys() & self.ops.keys(), f"{name}: a doomed record has an operation"
        writes = sum(f.op.kind is OpKind.WRITE for f in self.ops.values())
        assert self.demotions + self.idles == writes, f"{name}: writes are miscounted"

    def _order(
        self, kind: OpKind, key: BlockKey, place: Place, slot: int, group: int, priority: Priority
    ) -> Operation:
        op = TierOp(
            self._operations.number(),
            kind,
            self.tier,
            key,
            slot,
            group=group,
            end_token=place.end,
            parent=place.parent or b"",
            priority=priority,
            deadline_s=self.spec.deadline_s,
        )
        if not self.ops:
            self._moved = self._clock()
        operation = self.ops[key] = self._operations.order(op)
        return operation

    def _end(self, key: BlockKey) -> None:
        del self.ops[key]
        self._moved = self._clock()
