"""One tier below the arena: its traffic, its health, and its room where its bytes are ours."""

from collections.abc import Callable
from enum import StrEnum

from kvtier.brain.beliefs import Beliefs
from kvtier.brain.breaker import Breaker, BreakerState
from kvtier.brain.cost import ReadCost
from kvtier.brain.groups import Place
from kvtier.brain.operations import Operation, Operations
from kvtier.brain.plans import TierSpec
from kvtier.brain.reads import Reads
from kvtier.brain.residency import Residency
from kvtier.brain.space import Space
from kvtier.brain.stats import TierStats
from kvtier.brain.why import Why
from kvtier.policy import AdmissionPolicy
from kvtier.types import NO_SLOT, BlockKey, OpKind, OpStatus, Priority, TierOp

_GONE = (OpStatus.MISSING, OpStatus.CORRUPT)
_NOT_ITS_FAULT = (*_GONE, OpStatus.CANCELLED, OpStatus.NO_ROOM)
_TRYING = (OpKind.READ, OpKind.WRITE, OpKind.ASK)
"""Verbs that try the breaker: OPEN and RESET are tried again anyhow, and so is REMOVE."""
_FULL_S = 10.0  # until a store of others that was full is written to again
_STALLED_S = 1.0
_MAX_SUSPECTS = 1024  # the oldest are forgotten


class Phase(StrEnum):
    """Whether the ranks have the tier under the current namespace."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


class LowerTier:
    """Orders the operations of one tier and takes their answers; at most one per record is under way.

    A tier without a `space` is not ours: it is never listed, nothing is removed from it, and what it holds is
    what its answers say, for a while: its `beliefs`.
    """

    def __init__(  # noqa: PLR0913 - everything it depends on comes in here, by name
        self,
        tier: int,
        spec: TierSpec,
        *,
        residency: Residency,
        operations: Operations,
        cost: ReadCost,
        admission: AdmissionPolicy | None,
        space: Space | None,
        beliefs: Beliefs | None,
        clock: Callable[[], float],
    ) -> None:
        self.tier = tier
        self.spec = spec
        self.space = space
        self.beliefs = beliefs
        self.detached = False  # others go on with it, and this engine does not
        self.breaker = Breaker(clock, spread=0.0 if space else 0.5)
        self.cost = cost
        self.counters = TierStats(name=spec.name)
        self.keepers = 1 if spec.once else operations.ranks
        self.phase = Phase.CLOSED
        self.ops: dict[BlockKey, Operation] = {}
        self.reads = Reads(spec.deadline_s, clock)
        self._suspects: dict[BlockKey, int] = {}  # failed once; chunks read before that
        self.demotions = 0  # WRITE under way that a slot waits for, or soon will
        self.idles = 0  # WRITE under way at leisure
        self._full_until = 0.0
        self._admission = admission
        self._moved = clock()
        self._landed = 0  # bytes since `learn`
        self._since = clock()  # when it was idle, or bytes landed
        self._flowing = False  # some landed since it was idle
        self._residency = residency
        self._operations = operations
        self._clock = clock

    @property
    def serving(self) -> bool:
        """Whether it may be read and written now."""
        return self.phase is Phase.OPEN and self.breaker.closed

    @property
    def writable(self) -> bool:
        """Whether it serves, and its medium takes writes."""
        if self.space is None:
            return self.serving and self._clock() >= self._full_until
        return self.serving and self.space.room.writable

    @property
    def stalled(self) -> bool:
        """Whether operations are under way and none was answered for a while."""
        return bool(self.ops) and self._clock() - self._moved > _STALLED_S

    @property
    def opening(self) -> bool:
        """Whether it is not open yet, or does not know yet all that it holds."""
        if self.detached:
            return False
        return self.phase is not Phase.OPEN or bool(self.space and self.space.listing)

    @property
    def why_not(self) -> Why | None:
        """Why it does not serve; None if it does."""
        if self.detached:
            return Why.DETACHED
        if self.phase is not Phase.OPEN:
            return Why.OPENING
        return None if self.breaker.state is BreakerState.CLOSED else Why.RESTING

    @property
    def lacks_room(self) -> bool:
        """Whether a write was refused for room since room was last made."""
        return bool(self.space and self.space.wanted)

    @property
    def could_take(self) -> bool:
        """Whether what was refused for room would have it now."""
        return not self.space or self.space.takes

    def clear(self) -> None:
        """Forget all of it: the ranks start anew."""
        self.ops.clear()
        self.reads.clear()
        self._suspects.clear()
        self.demotions = self.idles = 0
        if self.space:
            self.space.clear()
        if self.beliefs:
            self.beliefs.clear()

    def refusal(self, key: BlockKey, end: int, nbytes: int) -> Why | None:
        """Return why a record may not be written now; if only room lacks, it is made for a later one."""
        if why := self.why_not:
            return why
        if key in self.ops or (self.space and self.space.is_doomed(key)):
            return Why.BUSY
        if not self.writable:
            return Why.FULL
        if self._admission is not None and not self._admission.admits(key, end):
            return Why.NOT_ADMITTED
        if self.space and not self.space.has_room(nbytes):
            return Why.NO_ROOM
        return None

    def fail(
        self, verb: OpKind, status: OpStatus, *, ahead: bool = False, known: bool = False
    ) -> None:
        """Count a failure; what the medium did wrong to a READ, a WRITE or an ASK tries the breaker, unless it is `known`.

        A read `ahead` of any request that never had its turn says only that others went first.
        """
        self.counters.failures[status] += 1
        outrun = ahead and status is OpStatus.DEADLINE
        if status not in _NOT_ITS_FAULT and verb in _TRYING and not outrun and not known:
            self.breaker.failed(verb)

    def watch(self) -> None:
        """Let the tier rest if a read hangs; what hung before it rested is not held against it again."""
        if not self.breaker.closed:
            self.reads.excuse()
        elif self.reads.hung:
            self.breaker.trip(OpKind.READ)

    def write(self, key: BlockKey, place: Place, group: int, nbytes: int, idle: bool) -> None:
        """Order the record of a resident chunk; its worst case of bytes is reserved."""
        slot = self._residency.index.slots[self._residency.index.rows[key]]
        self._residency.slots.use(slot)
        if self.space:
            self.space.reserve(key, nbytes)
        priority = Priority.IDLE if idle else Priority.WRITE
        self._order(OpKind.WRITE, key, place, slot, group, priority)
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
        if not self.reads.in_time and not self.reads.ahead:
            self._since, self._flowing = self._clock(), False
        self.reads.begin(key, demanded=priority is Priority.DEMAND)
        return self._order(OpKind.READ, key, place, slot, group, priority)

    def remove(self, key: BlockKey) -> None:
        """Order a record off every rank; its space has accounted that."""
        self._order(OpKind.REMOVE, key, Place(None, 0), NO_SLOT, 0, Priority.WRITE)

    def wrote(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer to WRITE: a record on every rank, or none that counts."""
        self._end(key)
        idle = operation.priority is Priority.IDLE
        self.idles -= idle
        self.demotions -= not idle
        if operation.ok:
            self.breaker.succeeded(OpKind.WRITE)
            self._suspects.pop(key, None)
            self.counters.count_write(operation)
        else:
            self.fail(OpKind.WRITE, operation.status)
            if operation.status is OpStatus.NO_ROOM:
                self._full_until = self._clock() + _FULL_S
        if self.space:
            self.space.wrote(key, operation.nbytes if operation.ok else None, operation.free)

    def answered(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer to READ. A record that is missing or bad on any rank is forgotten.

        So is one that cannot be read, twice, while others can. If the room of the tier is ours, the record is
        then removed from every rank. Of a tier that is not, every failure ends the belief in the record.
        """
        self._end(key)
        late = self.reads.is_late(key)
        self.reads.end(key)
        if operation.ok:
            self.breaker.succeeded(OpKind.READ)
            self.cost.served(operation.seconds)
            self._landed += 0 if late else operation.nbytes
            if self.space:
                self.space.room.read(key)
            if self.beliefs:
                self.beliefs.read(key, operation.nbytes)
            self.counters.count_read(operation)
            self._residency.note_read(self.tier, key)
            if self._suspects:
                self._suspects.pop(key, None)
        elif operation.status is not OpStatus.CANCELLED:
            ahead = operation.priority is Priority.PREFETCH
            self.fail(OpKind.READ, operation.status, ahead=ahead)
            failed = operation.status is OpStatus.ERROR
            if self.beliefs:
                self.beliefs.missing(key)
            elif operation.status in _GONE or (failed and self._is_bad(key)):
                nbytes = self._residency.erase(self.tier, key)
                if self.space:
                    self.space.doom(key, nbytes)

    def learn(self) -> None:
        """Take what landed since the last call for a sample of the tier's speed, if it reads on: then it had no pause."""
        if self._landed:
            now = self._clock()
            if self._flowing and (self.reads.in_time or self.reads.ahead):
                self.cost.arrived(self._landed, now - self._since)
            self._since, self._landed, self._flowing = now, 0, True

    def nbytes(self, key: BlockKey) -> int:
        """Bytes of a record that it has."""
        index = self._residency.index
        return index.sizes[self.tier - 1][index.rows[key]]

    def removed(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer to REMOVE."""
        assert self.space
        self._end(key)
        if not operation.ok:
            self.fail(OpKind.REMOVE, operation.status)
        self.space.removed(key, ok=operation.ok)

    def check(self, records: int) -> None:
        """Assert that its operations and bytes add up, `records` being the bytes of the records that it holds.

        Raises:
            AssertionError: they do not.
        """
        kinds = [operation.op.kind for operation in self.ops.values()]
        writes, removes = kinds.count(OpKind.WRITE), kinds.count(OpKind.REMOVE)
        assert self.demotions + self.idles == writes, f"{self.spec.name}: writes are miscounted"
        assert self.reads.all == kinds.count(OpKind.READ), f"{self.spec.name}: reads are miscounted"
        if self.space:
            self.space.check(records, writes=writes, removes=removes)
        else:
            assert not removes, f"{self.spec.name}: removes what is not ours"
        if self.beliefs:
            self.beliefs.check(self.ops)

    def _is_bad(self, key: BlockKey) -> bool:
        """Whether a record that cannot be read failed before, and others were read since."""
        if key in self._suspects:
            bad = self.counters.reads > self._suspects[key]
            if bad:
                del self._suspects[key]
            return bad
        if len(self._suspects) == _MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        self._suspects[key] = self.counters.reads
        return False

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
