"""Demotion: when a chunk goes down, and what becomes of the slots of those that leave."""

import pytest

from kvtier.brain import Why
from kvtier.types import OpKind, OpStatus, Priority, WriteMode
from tests.brain.fake_engine import (
    Engine,
    Shape,
    arrive,
    below,
    here,
    rest,
    sent,
    started,
    store,
    stored,
)
from tests.brain.fake_ranks import chain

A, B, C = chain("a", 8), chain("b", 8), chain("c", 8)
SHAPE = Shape(slots=10, capacity=40, watermark=0.0)


def engine(mode: WriteMode, slots: int = 10, watermark: float = 0.0) -> Engine:
    return started(SHAPE._replace(modes=(mode,), slots=slots, watermark=watermark))


def written(made: Engine) -> list[bytes]:
    return [op.key for op in sent(made, OpKind.WRITE)]


def test_through_writes_right_after_the_store() -> None:
    made = engine(WriteMode.THROUGH)
    stored(made, A[:2])
    made.step()
    assert written(made) == A[:2]
    assert below(made, A[:2]) == here(made, A[:2]) == [True, True]


def test_idle_writes_behind_and_keeps_nobody_awake() -> None:
    made = engine(WriteMode.IDLE)
    stored(made, A[:2])
    made.ranks.drain()
    assert {op.priority for op in made.ranks.sent} == {Priority.IDLE}
    assert not made.cache.awake()
    made.ranks.answer_all()
    assert below(made, A[:2]) == [True, True]


def test_idle_writes_are_bounded_and_follow_each_other() -> None:
    made = engine(WriteMode.IDLE)
    stored(made, A[:8])
    assert written(made) == A[:3]
    made.ranks.answer_all()
    assert written(made) == A[:6]


def test_on_evict_writes_below_the_low_watermark_and_frees_on_the_last_answer() -> None:
    made = engine(WriteMode.ON_EVICT, watermark=0.2)
    stored(made, A[:8])
    assert written(made) == []
    stored(made, B[:1])
    assert written(made) == [A[7]]
    assert here(made, A[7:]) == [True]
    assert made.cache.stats().free_slots == 1
    made.ranks.answer_all()
    assert here(made, A[7:]) == [False]
    assert below(made, A[7:]) == [True]
    assert made.cache.stats().free_slots == 2
    assert made.cache.stats().demotions == 1


def test_a_slot_that_is_being_written_is_not_reused_before_every_rank_answered() -> None:
    made = Engine(SHAPE._replace(ranks=2, slots=2))
    made.step()
    made.list_all()
    made.step()
    stored(made, A[:2])
    arrive(made, "b", B)
    assert made.cache.plan_store("b", B[:1]).keys == ()
    made.ranks.drain()
    (write,) = made.ranks.pending
    made.ranks.answer(write, 0)
    assert made.cache.plan_store("b", B[:1]).keys == ()
    made.ranks.answer(write, 1, OpStatus.DIED)
    assert made.cache.plan_store("b", B[:1]).keys == (B[0],)


def test_a_chunk_that_is_wanted_while_it_leaves_stays() -> None:
    made = engine(WriteMode.ON_EVICT, slots=2)
    stored(made, A[:2])
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:1])
    assert written(made) == [A[1]]
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A[:2]) is None
    made.ranks.answer_all()
    assert here(made, A[:2]) == [True, True]
    assert below(made, A[:2]) == [False, True]
    made.cache.depart("r")
    made.verify()


def test_a_clean_victim_is_freed_at_once() -> None:
    made = engine(WriteMode.IDLE, slots=2)
    stored(made, A[:2])
    made.step()
    arrive(made, "b", B)
    assert store(made, "b", B[:2]).keys == tuple(B[:2])
    assert not any(key in A for key in written(made)[2:])
    assert made.cache.stats().dropped == 0


def test_the_idle_write_of_a_victim_is_hastened() -> None:
    made = engine(WriteMode.IDLE, slots=2)
    stored(made, A[:2])
    made.ranks.drain()
    arrive(made, "b", B)
    assert made.cache.plan_store("b", B[:1]).no_room == (B[0],)
    (hasten,) = sent(made, OpKind.HASTEN)
    (write,) = [op for op in made.ranks.pending.values() if op.key == A[1]]
    assert (hasten.target, hasten.priority) == (write.op, Priority.WRITE)
    assert made.cache.awake()
    made.ranks.answer_all()
    assert made.cache.plan_store("b", B[:1]).keys == (B[0],)


def test_on_reuse_writes_what_was_hit_twice_and_drops_what_never_was() -> None:
    made = engine(WriteMode.ON_REUSE, slots=4)
    stored(made, A[:2])
    stored(made, B[:2])
    for name in ("r", "s"):
        arrive(made, name, A)
        assert made.cache.plan_read(name, A[:2]) is None
        assert made.cache.plan_read(name, A[:2]) is None
        assert written(made) == ([] if name == "r" else A[:2])
        made.cache.depart(name)
    made.ranks.answer_all()
    stored(made, C[:2])
    assert here(made, B[:2]) == below(made, B[:2]) == [False, False]
    assert made.cache.stats().dropped == 2


def test_on_reuse_saves_what_was_hit_once_when_it_is_evicted() -> None:
    made = engine(WriteMode.ON_REUSE, slots=2)
    stored(made, A[:2])
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    made.cache.depart("r")
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:1])
    assert written(made) == [A[1]]


def test_victims_are_dropped_while_the_tier_rests() -> None:
    made = engine(WriteMode.ON_EVICT, slots=2)
    rest(made.cache)
    stored(made, A[:2])
    arrive(made, "b", B)
    assert store(made, "b", B[:2]).keys == tuple(B[:2])
    assert written(made) == []
    stats = made.cache.stats()
    assert (stats.dropped, stats.tiers[1].refused) == (2, {Why.RESTING: 2})


def test_victims_beyond_max_writes_are_dropped() -> None:
    made = engine(WriteMode.ON_EVICT, slots=8)
    stored(made, A)
    arrive(made, "b", B)
    plan = made.cache.plan_store("b", B)
    assert len(plan.keys) == 5
    assert written(made) == [A[7], A[6], A[5]]


def test_victims_that_are_leaving_are_waited_for_until_the_tier_stalls() -> None:
    made = engine(WriteMode.ON_EVICT, slots=4)
    stored(made, A[:4])
    arrive(made, "b", B)
    assert made.cache.plan_store("b", B[:2]).keys == ()
    assert made.cache.plan_store("b", B[:2]).keys == ()
    assert written(made) == [A[3], A[2]]
    made.clock.now += 1.5
    made.cache.plan_store("b", B[:2])
    assert written(made) == [A[3], A[2], A[1]]
    assert made.cache.plan_store("b", B[:2]).keys == (B[0], B[1]) or here(made, A[:1]) == [False]
    made.verify()


def test_what_a_tier_does_not_admit_is_dropped() -> None:
    made = started(SHAPE._replace(slots=2, below_admission="tests.brain.fake_engine:Never"))
    stored(made, A[:2])
    arrive(made, "b", B)
    assert store(made, "b", B[:2]).keys == tuple(B[:2])
    assert written(made) == []


def test_a_write_that_failed_on_any_rank_is_removed_on_all() -> None:
    made = Engine(SHAPE._replace(ranks=2, modes=(WriteMode.THROUGH,)))
    made.step()
    made.list_all()
    made.step()
    stored(made, A[:1])
    made.ranks.drain()
    (write,) = made.ranks.pending
    made.ranks.answer(write, 0)
    made.ranks.answer(write, 1, OpStatus.ERROR)
    assert below(made, A[:1]) == [False]
    assert [op.key for op in sent(made, OpKind.REMOVE)] == A[:1]
    assert made.cache.stats().tiers[1].used > 0
    made.ranks.answer_all()
    assert made.cache.stats().tiers[1].used == 0
    assert made.ranks.ranks[0].records[1] == {}


def test_a_leaving_chunk_whose_write_failed_is_dropped() -> None:
    made = engine(WriteMode.ON_EVICT, slots=2)
    stored(made, A[:2])
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:1])
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR)
    assert here(made, A[:2]) == [True, False]
    assert made.cache.plan_store("b", B[:1]).keys == (B[0],)
    assert made.cache.stats().dropped == 1


@pytest.mark.parametrize("second", list(WriteMode))
def test_every_tier_below_gets_its_own_copy(second: WriteMode) -> None:
    made = started(SHAPE._replace(modes=(WriteMode.THROUGH, second), slots=4))
    stored(made, A[:1])
    arrive(made, "r", A)
    arrive(made, "s", A)
    for name in ("r", "s"):
        made.cache.plan_read(name, A[:1])
        made.cache.depart(name)
    made.step()
    stored(made, B[:4])
    for _ in range(3):
        made.step()
    assert all(made.cache.view.holds(tier, A[0]) for tier in (1, 2))
