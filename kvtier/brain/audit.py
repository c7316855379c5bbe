"""The brain's fsck: every invariant, against every table that could break it."""

from collections import Counter
from itertools import chain

from kvtier.brain.copying import Copying
from kvtier.brain.core import Core
from kvtier.brain.promotion import Promotion
from kvtier.index import IN_TIER0, TIERS
from kvtier.types import NO_SLOT, BlockKey, OpKind


def audit(core: Core, promotion: Promotion, copying: Copying) -> None:
    """Assert all of it.

    Raises:
        AssertionError: names the broken invariant.
    """
    _check_rows(core, promotion, copying)
    _check_slots(core, copying)
    _check_pins(core, copying)
    _check_reads(core, promotion)
    _check_lowers(core)


def _check_rows(core: Core, promotion: Promotion, copying: Copying) -> None:
    index = core.ledger.index
    chunks = [0] * len(core.ledger.policies)
    for key, row in index.rows.items():
        flags, slot = index.flags[row], index.slots[row]
        resident = bool(flags & IN_TIER0)
        assert flags & TIERS or slot != NO_SLOT, "a row that nothing needs"
        assert slot != NO_SLOT or not resident, "resident without a slot"
        coming = (key in copying.storing) + (key in promotion.fills)
        assert coming == (slot != NO_SLOT and not resident), "a slot without a way in, or with two"
        for tier in range(len(chunks)):
            chunks[tier] += flags >> tier & 1
    assert chunks == core.ledger.chunks, "chunks are miscounted"
    assert copying.storing <= index.rows.keys(), "storing a chunk without a row"
    assert len(set(index.rows.values())) == len(index.rows), "a row has two keys"
    assert index.unlinked == sum(not index.ends[row] for row in index.rows.values())


def _check_slots(core: Core, copying: Copying) -> None:
    index, slots = core.ledger.index, core.ledger.slots
    slots.check([index.slots[row] for row in index.rows.values() if index.slots[row] != NO_SLOT])
    uses = Counter(chain.from_iterable(plan.slots for plan in copying.plans.values()))
    uses.update(flight.op.slot for flight in core.flights.all() if flight.op.slot != NO_SLOT)
    assert slots.uses() == uses, "a slot's uses are miscounted"


def _check_pins(core: Core, copying: Copying) -> None:
    epoch = core.flights.epoch
    pins: Counter[BlockKey] = Counter()
    for request in core.roster.requests.values():
        pins.update(request.held)
    for plan in copying.plans.values():
        if plan.epoch == epoch:
            pins.update(plan.pins)
    assert core.ledger.pins == pins, "pins are miscounted"
    for key in pins:
        assert core.ledger.index.resident(key), "a pinned chunk is not in tier 0"
        assert key not in core.ledger.leaving, "a pinned chunk is leaving"
    assert core.roster.masks.keys() <= core.roster.requests.keys(), "an unknown request is settled"


def _check_reads(core: Core, promotion: Promotion) -> None:
    flying = {
        flight.op.op: flight for flight in core.flights.all() if flight.epoch == core.flights.epoch
    }
    for key, fill in promotion.fills.items():
        assert flying.get(fill.flight.op.op) is fill.flight, "a fill's read is lost"
        assert fill.flight.op.slot == core.ledger.index.slots[core.ledger.index.rows[key]]
        for name, request in fill.waiters.items():
            assert core.roster.requests.get(name) is request, "an unknown request waits"
            assert request.reading is not None
            assert key in request.reading.left
    for request in core.roster.requests.values():
        for key in request.reading.left if request.reading else ():
            assert request.name in promotion.fills[key].waiters, "a request waits for nothing"
    reads = sum(flight.op.kind is OpKind.READ for flight in flying.values())
    assert reads == len(promotion.fills), "a read without a fill"


def _check_lowers(core: Core) -> None:
    index = core.ledger.index
    for lower in core.lowers:
        sizes = index.sizes[lower.tier - 1]
        held = [row for row in index.rows.values() if index.flags[row] >> lower.tier & 1]
        lower.check(sum(sizes[row] for row in held))
        flying = {flight.op.op for flight in core.flights.all()}
        assert all(flight.op.op in flying for flight in lower.ops.values()), "a lost operation"
    for key in core.ledger.leaving:
        assert index.resident(key), "a leaving chunk has left"
        writing = [low.ops[key].op.kind for low in core.lowers if key in low.ops]
        assert OpKind.WRITE in writing, "a chunk leaves but is not being written"
