"""Liveness, prefetch, events and numbers."""

from kvtier.brain import CacheEvent, ReadPlan
from kvtier.types import OpKind, OpResult, OpStatus, Priority, WriteMode
from tests.brain.fake_engine import (
    Engine,
    Shape,
    arrive,
    here,
    put,
    rest,
    sent,
    started,
    store,
    stored,
)
from tests.brain.fake_ranks import CHUNK, RECORD, chain

A, B = chain("a", 8), chain("b", 8)
BELOW = Shape(
    slots=16,
    capacity=20,
    modes=(WriteMode.IDLE,),
    watermark=0.0,
    found=tuple(("a", i) for i in range(8)),
)
AHEAD = BELOW._replace(prefetch=True, watermark=0.25)


def reads(made: Engine) -> list[bytes]:
    return [op.key for op in sent(made, OpKind.READ)]


def test_the_engine_is_awake_while_an_operation_moves_and_not_for_a_hung_one() -> None:
    made = started(BELOW)
    assert not made.cache.awake()
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    assert made.cache.awake(), "there is something to send"
    made.clock.now += 100
    assert made.cache.awake(), "however late"
    made.ranks.drain()
    assert made.cache.awake()
    made.clock.now += 0.9
    made.ranks.answer(next(iter(made.ranks.pending)), 0)
    made.clock.now += 0.9
    assert made.cache.awake(), "it moved within the last second"
    made.clock.now += 0.2
    assert not made.cache.awake()


def test_the_engine_steps_once_more_for_what_was_stored_last_and_then_sleeps() -> None:
    made = started(BELOW._replace(found=()))
    stored(made, A[:3])
    assert made.cache.awake(), "the writes are not ordered yet"
    assert len(sent(made, OpKind.WRITE)) == 3
    assert not made.cache.awake()
    made.ranks.answer_all()
    assert not made.cache.awake()


def test_writes_that_find_no_room_do_not_keep_the_engine_awake() -> None:
    made = started(BELOW._replace(found=(), capacity=2))
    stored(made, A)
    for _ in range(20):
        made.step()
    made.clock.now += 2
    assert not made.cache.awake()


def test_answers_to_nothing_are_ignored() -> None:
    made = started(BELOW)
    made.cache.complete([OpResult(0, 99999, OpStatus.OK), OpResult(7, 1, OpStatus.OK)])
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    (read,) = sent(made, OpKind.READ)
    made.cache.complete([OpResult(5, read.op, OpStatus.OK)])
    assert not made.cache.ready("r")


def test_a_prefix_below_is_read_ahead_when_its_request_arrives() -> None:
    made = started(AHEAD)
    arrive(made, "r", A)
    assert reads(made) == A
    assert {op.priority for op in made.ranks.sent} == {Priority.PREFETCH}
    made.ranks.answer_all()
    assert here(made, A) == [True] * 8
    assert made.cache.plan_read("r", A) is None
    assert made.cache.stats().prefetches == 8


def test_a_read_ahead_that_a_request_waits_for_is_raised() -> None:
    made = started(AHEAD)
    arrive(made, "r", A)
    made.ranks.drain()
    plan = made.cache.plan_read("r", A[:2])
    assert plan is not None
    assert plan.reading == 2
    hastened = {op.target for op in sent(made, OpKind.HASTEN)}
    assert hastened == {op for op, o in made.ranks.pending.items() if o.key in A[:2]}
    assert reads(made) == A, "not read twice"


def test_reads_ahead_leave_the_last_slots_alone_and_are_cancelled_under_pressure() -> None:
    made = started(AHEAD._replace(slots=8))
    arrive(made, "r", A)
    assert reads(made) == A[:4], "half of the slots"
    made.cache.depart("r")
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:8])
    assert len(sent(made, OpKind.CANCEL)) == 4


def test_who_comes_for_a_read_ahead_that_is_being_cancelled_gets_it_all_the_same() -> None:
    """Some ranks had read it, some had not begun: it is read again, into the same slot."""
    made = started(AHEAD._replace(slots=8, ranks=2, found=tuple(("a", i) for i in range(9))))
    arrive(made, "early", A)
    assert reads(made) == A[:4]
    slots = {op.key: op.slot for op in made.ranks.pending.values()}
    made.cache.depart("early")
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:8])
    assert len(sent(made, OpKind.CANCEL)) == 4
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A[:4]) == ReadPlan(4, tuple(A[:4]))
    for op in list(made.ranks.pending):
        made.ranks.answer(op, 0)
        made.ranks.answer(op, 1, OpStatus.CANCELLED)
    assert not made.cache.ready("r")
    assert reads(made) == A[:4] * 2
    assert {op.key: op.slot for op in made.ranks.pending.values()} == slots
    made.ranks.answer_all()
    assert made.cache.ready("r")
    assert made.cache.plan_read("r", A[:4]) is None
    made.verify()


def test_a_cancelled_read_is_not_ordered_anew_from_a_tier_that_rests() -> None:
    made = started(BELOW._replace(slots=8))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    made.ranks.drain()
    made.cache.cancel("r")
    made.cache.plan_read("r", A[:2])
    rest(made.cache)
    made.ranks.answer_all(OpStatus.CANCELLED)
    assert made.cache.ready("r")
    assert reads(made) == A[:2]
    made.verify()


def test_a_cancelled_read_that_nobody_waits_for_any_more_stays_cancelled() -> None:
    made = started(BELOW._replace(slots=8))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:4])
    made.ranks.drain()
    made.cache.cancel("r")
    assert len(sent(made, OpKind.CANCEL)) == 4
    made.cache.plan_read("r", A[:4])
    made.cache.cancel("r")
    made.ranks.answer_all(OpStatus.CANCELLED)
    assert not made.ranks.drain()
    assert reads(made) == A[:4]
    made.verify()


def test_a_request_keeps_what_was_read_ahead_for_it_when_the_rest_lacks_room() -> None:
    made = started(AHEAD._replace(slots=8))
    arrive(made, "b", B)
    store(made, "b", B[:3])
    made.step()
    made.cache.depart("b")
    arrive(made, "r", A)
    assert reads(made) == A[:4]
    plan = made.cache.plan_read("r", A)
    assert plan is not None
    assert plan.reading >= 4, "cut short"
    assert not sent(made, OpKind.CANCEL)


def test_read_ahead_stops_at_a_hole() -> None:
    made = started(AHEAD._replace(found=(("a", 0), ("a", 1), ("a", 3))))
    arrive(made, "r", A)
    assert reads(made) == A[:2]


def test_only_the_window_of_a_window_group_is_read_ahead() -> None:
    made = started(AHEAD._replace(hybrid=True, found=()))
    window = chain("a", 8, group=1)
    keys = [*A[:6], *window[:6]]
    put(made, keys)
    made.cache.arrive("r", [A, window])
    assert reads(made) == [*A[:6], *window[4:6]]


def test_events_name_what_became_readable_and_what_left() -> None:
    made = started(BELOW._replace(modes=(WriteMode.THROUGH,), slots=2, found=()))
    arrive(made, "a", A)
    store(made, "a", A[:2])
    made.step()
    assert made.cache.events() == [
        CacheEvent(0, "dram", tuple(A[:2]), False),
        CacheEvent(1, "tier1", tuple(A[:2]), False),
    ]
    arrive(made, "b", B)
    store(made, "b", B[:1])
    assert made.cache.events() == [
        CacheEvent(0, "dram", (A[1],), True),
        CacheEvent(0, "dram", (B[0],), False),
    ]
    assert made.cache.events() == []


def test_numbers_tell_where_hits_came_from() -> None:
    made = started(BELOW)
    arrive(made, "a", A)
    store(made, "a", A[:2])
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:5])
    made.ranks.drain()
    made.ranks.answer_all()
    assert made.cache.plan_read("r", A[:5]) is None
    assert made.cache.plan_read("r", A[:5]) is None
    plan = made.ranks.loaded(made.cache.plan_load("r", A[:5]), A[:5])
    made.ranks.finish(plan.plan_id)
    made.cache.transferred(5 * CHUNK, 0.5)
    stats = made.cache.stats()
    dram, below = stats.tiers
    assert (dram.name, dram.capacity, dram.chunks, dram.hits) == ("dram", 16 * CHUNK, 5, 2)
    assert (below.name, below.chunks, below.hits, below.reads) == ("tier1", 8, 3, 3)
    assert (below.read_bytes, below.used) == (3 * RECORD, 8 * RECORD)
    assert (dram.reads, dram.read_bytes, dram.read_seconds) == (5, 5 * CHUNK, 0.5)
    assert (stats.stores, stats.loads, stats.pinned, stats.requests) == (2, 5, 0, 2)
    assert stats.lookups == 0


def test_learning_never_needs_samples_that_make_sense() -> None:
    made = started(BELOW)
    made.cache.prefilled(0, 0.0)
    made.cache.transferred(0, 0.0)
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A) is not None
