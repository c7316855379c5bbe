"""The brain's fsck: every invariant, against every table that could break it."""

from collections import Counter
from itertools import chain

from kvtier.brain.copies import Copies
from kvtier.brain.index import IN_TIER0, TIERS
from kvtier.brain.promotion import Promotion
from kvtier.brain.state import State
from kvtier.types import NO_SLOT, BlockKey, OpKind


def audit(state: State, promotion: Promotion, copies: Copies) -> None:
    """Assert all of it.

    Raises:
        AssertionError: names the broken invariant.
    """
    _check_rows(state, promotion, copies)
    _check_slots(state, copies)
    _check_pins(state, copies)
    _check_reads(state, promotion)
    _check_lowers(state)


def _check_rows(state: State, promotion: Promotion, copies: Copies) -> None:
    index = state.residency.index
    chunks = [0] * len(state.residency.policies)
    for key, row in index.rows.items():
        flags, slot = index.flags[row], index.slots[row]
        resident = bool(flags & IN_TIER0)
        assert flags & TIERS or slot != NO_SLOT, "a row that nothing needs"
        assert slot != NO_SLOT or not resident, "resident without a slot"
        coming = (key in copies.storing) + (key in promotion.fills)
        assert coming == (slot != NO_SLOT and not resident), "a slot without a way in, or with two"
        for tier in range(len(chunks)):
            chunks[tier] += flags >> tier & 1
    assert chunks == state.residency.chunks, "chunks are miscounted"
    assert copies.storing <= index.rows.keys(), "storing a chunk without a row"
    assert len(set(index.rows.values())) == len(index.rows), "a row has two keys"
    assert index.unlinked == sum(not index.ends[row] for row in index.rows.values())


def _check_slots(state: State, copies: Copies) -> None:
    index, slots = state.residency.index, state.residency.slots
    slots.check([index.slots[row] for row in index.rows.values() if index.slots[row] != NO_SLOT])
    uses = Counter(chain.from_iterable(plan.slots for plan in copies.plans.values()))
    uses.update(
        operation.op.slot for operation in state.operations.all() if operation.op.slot != NO_SLOT
    )
    assert slots.uses() == uses, "a slot's uses are miscounted"


def _check_pins(state: State, copies: Copies) -> None:
    epoch = state.operations.epoch
    pins: Counter[BlockKey] = Counter()
    for request in state.roster.requests.values():
        pins.update(request.held)
    for plan in copies.plans.values():
        if plan.epoch == epoch:
            pins.update(plan.pins)
    assert state.residency.pins == pins, "pins are miscounted"
    for key in pins:
        assert state.residency.index.resident(key), "a pinned chunk is not in tier 0"
        assert key not in state.residency.leaving, "a pinned chunk is leaving"
    assert state.roster.masks.keys() <= state.roster.requests.keys(), (
        "an unknown request is settled"
    )


def _check_reads(state: State, promotion: Promotion) -> None:
    flying = {
        operation.op.op: operation
        for operation in state.operations.all()
        if operation.epoch == state.operations.epoch
    }
    for key, fill in promotion.fills.items():
        assert flying.get(fill.operation.op.op) is fill.operation, "a fill's read is lost"
        assert (
            fill.operation.op.slot == state.residency.index.slots[state.residency.index.rows[key]]
        )
        for name, request in fill.waiters.items():
            assert state.roster.requests.get(name) is request, "an unknown request waits"
            assert request.reading is not None
            assert key in request.reading.left
    for request in state.roster.requests.values():
        for key in request.reading.left if request.reading else ():
            assert request.name in promotion.fills[key].waiters, "a request waits for nothing"
    reads = sum(operation.op.kind is OpKind.READ for operation in flying.values())
    assert reads == len(promotion.fills), "a read without a fill"


def _check_lowers(state: State) -> None:
    index = state.residency.index
    for lower in state.lowers:
        sizes = index.sizes[lower.tier - 1]
        held = [row for row in index.rows.values() if index.flags[row] >> lower.tier & 1]
        lower.check(sum(sizes[row] for row in held))
        flying = {operation.op.op for operation in state.operations.all()}
        assert all(operation.op.op in flying for operation in lower.ops.values()), (
            "a lost operation"
        )
    for key in state.residency.leaving:
        assert index.resident(key), "a leaving chunk has left"
        writing = [low.ops[key].op.kind for low in state.lowers if key in low.ops]
        assert OpKind.WRITE in writing, "a chunk leaves but is not being written"
