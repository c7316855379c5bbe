"""The brain's fsck: every invariant, against every table that could break it."""

from collections import Counter
from itertools import chain

from kvtier.brain.asking import Asking
from kvtier.brain.copies import Copies
from kvtier.brain.index import IN_TIER0, LEAVING, STORING, ChunkState
from kvtier.brain.promotion import Promotion
from kvtier.brain.reading import Reading
from kvtier.brain.state import State
from kvtier.brain.turn import Turns
from kvtier.types import NO_SLOT, BlockKey, OpKind


def audit(state: State, promotion: Promotion, copies: Copies, asks: Asking) -> None:
    """Assert all of it.

    Raises:
        AssertionError: names the broken invariant.
    """
    _check_rows(state, promotion, copies)
    _check_slots(state, copies)
    _check_pins(state, copies)
    _check_reads(state, promotion)
    _check_turns(state, promotion.turns)
    _check_lowers(state)
    asks.check()


def _check_rows(state: State, promotion: Promotion, copies: Copies) -> None:
    index, residency = state.residency.index, state.residency
    chunks = [0] * len(state.policies.eviction)
    found: dict[ChunkState, set[BlockKey]] = {each: set() for each in ChunkState}
    for key, row in index.rows.items():
        found[index.state(row)].add(key)
        flags, slot = index.flags[row], index.slots[row]
        assert (slot != NO_SLOT) or not flags & (IN_TIER0 | STORING | LEAVING), "no slot"
        assert not flags & STORING or not flags & (IN_TIER0 | LEAVING), "in two states"
        assert not flags & LEAVING or flags & IN_TIER0, "leaving from nowhere"
        for tier in range(len(chunks)):
            chunks[tier] += flags >> tier & 1
    assert not found[ChunkState.ABSENT], "a row that nothing needs"
    assert found[ChunkState.STORING] == _stored(state, copies), "a store is lost, or nobody's"
    assert found[ChunkState.FILLING] == promotion.fills.keys(), "a read is lost, or nobody's"
    assert len(found[ChunkState.LEAVING]) == residency.leaving, "leaving chunks are miscounted"
    for key in found[ChunkState.LEAVING]:
        writing = [low.ops[key].op.kind for low in state.lowers if low.space and key in low.ops]
        assert OpKind.WRITE in writing, "a chunk leaves but is not being written"
    assert chunks == residency.chunks, "chunks are miscounted"
    assert len(set(index.rows.values())) == len(index.rows), "a row has two keys"
    assert index.unlinked == sum(not index.ends[row] for row in index.rows.values())


def _stored(state: State, copies: Copies) -> set[BlockKey]:
    epoch = state.operations.epoch
    mine = (plan.keys for plan in copies.plans.values() if plan.store and plan.epoch == epoch)
    return set(chain.from_iterable(mine))


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
    for request in state.requests.values():
        pins.update(request.held)
    for plan in copies.plans.values():
        if plan.epoch == epoch:
            pins.update(plan.pins)
    assert state.residency.pins == pins, "pins are miscounted"
    for key in pins:
        held = state.residency.index.state(state.residency.index.rows[key])
        assert held is ChunkState.RESIDENT, f"a pinned chunk is {held}"


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
        for waiter in fill.waiters:
            if isinstance(waiter, Reading):
                request = waiter.request
                assert state.requests.get(request.name) is request, "an unknown request waits"
                assert request.reading is waiter
                assert key in waiter.left
    for request in state.requests.values():
        for key in request.reading.left if isinstance(request.reading, Reading) else ():
            assert request.reading in promotion.fills[key].waiters, "a request waits for nothing"
    reads = sum(operation.op.kind is OpKind.READ for operation in flying.values())
    assert reads == len(promotion.fills), "a read without a fill"


def _check_turns(state: State, turns: Turns) -> None:
    """Nobody waits for nobody, and one request alone holds slots while it waits for more."""
    waiting = turns.waiting()
    assert not waiting or turns.moving, "a request waits for room, and nothing moves"
    for request in waiting:
        assert not request.held or request is turns.holder, "two requests hold slots for each other"
    holder = turns.holder
    assert holder is None or state.requests.get(holder.name) is holder, "a holder that is gone"
    assert holder is None or not holder.settled, "a holder that wants nothing"


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
