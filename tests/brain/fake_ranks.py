"""The other side of the brain, in memory: every rank's slots and records, with what they really contain.

It notices lies: a slot that is reused while something reads or writes it, a chunk that is said to be
somewhere where its bytes are not, on any rank.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.brain import LoadPlan, StorePlan, TieredCache
from kvtier.types import (
    NO_SLOT,
    BlockKey,
    GroupSpec,
    OpKind,
    OpResult,
    OpStatus,
    ScanBatch,
    TierOp,
)

TRACKED = tuple(kind for kind in OpKind if kind not in (OpKind.CANCEL, OpKind.HASTEN))
PAGE = 4096
CHUNK = 2 * PAGE
RECORD = CHUNK + PAGE
FULL = GroupSpec(0, 16, None, CHUNK)
WINDOW = GroupSpec(1, 16, 2, CHUNK)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Content(NamedTuple):
    """What stands in a slot or a record."""

    key: bytes
    epoch: int


GARBAGE = Content(b"garbage", -1)


def chain(name: str, n: int, group: int = 0) -> list[BlockKey]:
    """Make the keys of a prefix: chunk i of `name` is the same in every prefix of that name."""
    return [
        BlockKey(f"{name}/{i}".encode().ljust(32, b".") + group.to_bytes(4, "big"))
        for i in range(n)
    ]


@dataclass
class Copy:
    """A device copy that the ranks have been given."""

    keys: Sequence[BlockKey]
    slots: Sequence[int]
    store: bool
    epoch: int
    reads: Mapping[int, int] = field(default_factory=dict)  # by position: copied when it has landed


@dataclass
class Rank:
    """One rank's memory and media."""

    slots: list[Content]
    records: dict[int, dict[bytes, Content]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)


class Ranks:
    """All ranks of one engine, driven by the test."""

    def __init__(
        self, cache: TieredCache, ranks: int, slots: int, tiers: int, owned: int | None = None
    ) -> None:
        self.cache = cache
        self.owned = tiers if owned is None else owned  # tiers whose room is the brain's
        self.ranks = [
            Rank([GARBAGE] * slots, {t: {} for t in range(1, tiers + 1)}) for _ in range(ranks)
        ]
        self.pending: dict[int, TierOp] = {}
        self.left: dict[int, set[int]] = {}
        self.born: dict[int, int] = {}  # the epoch that an operation was ordered in
        self.openings: dict[int, int] = {}  # by tier: the OPEN that was ordered last
        self.copies: dict[int, Copy] = {}
        self.cancelled: set[int] = set()
        self.sent: list[TierOp] = []
        self.epoch = 0
        self.lost: set[tuple[int, int, bytes]] = set()  # removed behind the brain's back
        self.free = 0  # what a rank says that has no room; -1: nobody can say
        self.medium: int | None = (
            None  # bytes that a rank's tiers have together; None: no end of them
        )
        self.others = 0  # bytes of it that somebody else has
        self.kept = 0  # bytes of it that stay although they were removed
        self.snapshot = False  # removed bytes stay
        self.lie: Callable[[int, int], int] = lambda leading, asked: leading

    # from the brain

    def drain(self) -> list[TierOp]:
        """Take the brain's operations, as a step does."""
        ops = self.cache.drain()
        for op in ops:
            self.sent.append(op)
            if op.kind in (OpKind.CANCEL, OpKind.HASTEN):
                self.cancelled.add(op.target)
                continue
            self._check_use(op)
            if op.kind is OpKind.OPEN:
                self.openings[op.tier] = op.op
            self.pending[op.op] = op
            self.left[op.op] = set(range(len(self.ranks)))
            self.born[op.op] = self.epoch
        return ops

    def _check_use(self, op: TierOp) -> None:
        if op.tier > self.owned:
            assert op.kind not in (OpKind.REMOVE, OpKind.RECLAIM), "that room is not ours"
        if op.kind is OpKind.READ:
            assert not self.users(op.slot), "READ into a slot in use"
        if op.kind is OpKind.WRITE:
            assert not op.key.startswith(b"lora"), "WRITE of what must stay in tier 0"
            writers = [u for u in self.users(op.slot) if u in ("READ", "store")]
            assert not writers, "WRITE from a slot that is being filled"
            for rank in self.ranks:
                assert rank.slots[op.slot] == Content(op.key, self.epoch), "WRITE of other bytes"

    def users(self, slot: int) -> list[str]:
        """Name what reads or writes a slot now."""
        users = [op.kind.name for op in self.pending.values() if op.slot == slot]
        copies = [copy for copy in self.copies.values() if slot in copy.slots]
        return users + ["store" if copy.store else "load" for copy in copies]

    def stored(self, plan: StorePlan, epoch: int | None = None) -> StorePlan:
        """Take a store plan of a request whose KV is of `epoch`."""
        assert len(plan.keys) == len(plan.slots) == len(set(plan.slots))
        for slot in plan.slots:
            assert not self.users(slot), "a store into a slot in use"
        if plan.keys:
            born = self.epoch if epoch is None else epoch
            self.copies[plan.plan_id] = Copy(plan.keys, plan.slots, True, born)
        return plan

    def loaded(self, plan: LoadPlan, keys: Sequence[BlockKey]) -> LoadPlan:
        """Take a load plan."""
        for i, (key, slot) in enumerate(zip(keys, plan.slots, strict=True)):
            if i in plan.reads:
                op = self.pending[plan.reads[i]]
                assert (op.kind, op.key, op.slot) == (OpKind.READ, key, slot), "nothing brings it"
            elif slot != NO_SLOT:
                self.expect(key, slot)
        self.copies[plan.plan_id] = Copy(keys, plan.slots, False, self.epoch, plan.reads)
        return plan

    def expect(self, key: bytes, slot: int) -> None:
        """Assert that a slot holds a chunk on every rank."""
        for rank in self.ranks:
            assert rank.slots[slot] == Content(key, self.epoch), "a hit on other bytes"

    # to the brain

    def finish(self, plan_id: int, failed: Iterable[BlockKey] = ()) -> None:
        """Let every rank finish a plan's copies."""
        copy = self.copies.pop(plan_id)
        failed = set(failed)
        for i in copy.reads:  # of a chunk that has not landed, or badly, nobody made a copy
            content = Content(copy.keys[i], copy.epoch)
            if any(rank.slots[copy.slots[i]] != content for rank in self.ranks):
                failed.add(BlockKey(copy.keys[i]))
        for key, slot in zip(copy.keys, copy.slots, strict=True):
            if slot == NO_SLOT or (copy.reads and key in failed):
                continue
            assert not [u for u in self.users(slot) if u in ("READ", "store")], "two writers"
            for n, rank in enumerate(self.ranks):
                if copy.store:
                    broken = key in failed and n == 0
                    rank.slots[slot] = GARBAGE if broken else Content(key, copy.epoch)
                elif key not in failed:
                    assert rank.slots[slot] == Content(key, copy.epoch), "loaded other bytes"
        self.cache.finish(plan_id, failed)

    def answer(
        self, op_id: int, rank: int, status: OpStatus = OpStatus.OK, seconds: float = 0.01
    ) -> None:
        """Let one rank carry out and answer one operation."""
        op = self.pending[op_id]
        if self.medium is not None:
            self.free = max(0, self.medium - self.occupied(rank) - self.others - self.kept)
            if op.kind is OpKind.WRITE and status is OpStatus.OK and self.free < RECORD:
                status = OpStatus.NO_ROOM
        status, nbytes = self._execute(op, rank, status)
        self.left[op_id].discard(rank)
        if not self.left[op_id]:
            del self.pending[op_id], self.left[op_id]
        found = self._found(op, rank) if op.kind is OpKind.ASK else -1
        result = OpResult(rank, op_id, status, nbytes, seconds, free=self.free, found=found)
        self.cache.complete([result])

    def _found(self, op: TierOp, rank: int) -> int:
        """Count, on the first rank, the records of a question that lead; a store may lie."""
        if rank:
            return -1
        records = self.ranks[0].records[op.tier]
        leading = next((i for i, key in enumerate(op.keys) if key not in records), len(op.keys))
        return self.lie(leading, len(op.keys))

    def occupied(self, rank: int) -> int:
        """Bytes of a rank's records."""
        return RECORD * sum(map(len, self.ranks[rank].records.values()))

    def answer_all(self, status: OpStatus = OpStatus.OK, kinds: Sequence[OpKind] = TRACKED) -> None:
        """Let every rank answer everything of these kinds, in order."""
        for op_id, op in list(self.pending.items()):
            if op.kind in kinds:
                for rank in sorted(self.left[op_id]):
                    self.answer(op_id, rank, status)

    def settle(self, steps: int = 60) -> None:
        """Step and answer until nothing is under way."""
        for _ in range(steps):
            self.drain()
            if not self.pending:
                return
            self.answer_all()
        raise AssertionError("never idle")

    def _execute(self, op: TierOp, n: int, status: OpStatus) -> tuple[OpStatus, int]:
        rank = self.ranks[n]
        records = rank.records[op.tier]
        stale = rank.epochs.get(op.tier, 0) > self.born[op.op]
        if stale:
            status = OpStatus.CANCELLED
        if op.kind is OpKind.READ:
            return self._read(op, n, status)
        if op.kind is OpKind.WRITE:
            if status is OpStatus.OK:
                records[op.key] = rank.slots[op.slot]
                self.lost.discard((n, op.tier, op.key))
                assert rank.slots[op.slot] == Content(op.key, self.born[op.op]), "wrote other bytes"
            return status, RECORD
        if op.kind is OpKind.REMOVE and status is OpStatus.OK:
            self.kept += RECORD * (self.snapshot and op.key in records)
            records.pop(op.key, None)
        if op.kind is OpKind.RESET and status in (OpStatus.OK, OpStatus.DIED):
            records.clear()
            rank.epochs[op.tier] = self.born[op.op]
        return status, 0

    def _read(self, op: TierOp, n: int, status: OpStatus) -> tuple[OpStatus, int]:
        rank = self.ranks[n]
        record = rank.records[op.tier].get(op.key)
        if status is OpStatus.CORRUPT:
            rank.records[op.tier].pop(op.key, None)
            self.lost.add((n, op.tier, op.key))
        if status is OpStatus.OK and record is None:
            status = OpStatus.MISSING
        rank.slots[op.slot] = record if status is OpStatus.OK and record else GARBAGE
        return status, RECORD

    def list_all(self, tier: int, rank: int, *, done: bool = True) -> None:
        """Let a rank report all its records as its scan does."""
        keys = list(self.ranks[rank].records[tier])
        n = len(keys)
        mtimes = [float(i) for i in range(n)]
        opening = self.openings[tier]
        self.cache.scanned(ScanBatch(rank, tier, opening, keys, [RECORD] * n, mtimes, done))

    def reset(self, stale: Sequence[str] | None = None) -> None:
        """Begin a new epoch."""
        self.epoch += 1
        self.cache.reset(f"epoch {self.epoch}", stale)

    def verify(self) -> None:
        """Assert that everything the brain says is true."""
        self.cache.check()
        view = self.cache.view
        for key in list(view.keys()):
            if view.holds(0, key):
                self.expect(key, view.slot(key))
            for tier in list(self.ranks[0].records)[: self.owned]:
                for n, rank in enumerate(self.ranks):
                    if view.holds(tier, key) and (n, tier, key) not in self.lost:
                        assert rank.records[tier].get(key) == Content(key, self.epoch), "no record"

    def check_known(self) -> None:
        """Assert that no rank keeps a record that the brain does not know."""
        for rank in self.ranks:
            for tier, records in list(rank.records.items())[: self.owned]:
                known = set(self.cache.view.keys(tier))
                assert records.keys() <= known, "a record that nobody will ever remove"
