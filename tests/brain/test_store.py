"""Stores: what is taken, what is refused, what makes room."""

import pytest

from kvtier.brain import StorePlan, Why
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.types import OpKind, OpStatus, Priority, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, here, started, store
from tests.brain.fake_ranks import RECORD, chain

A, B = chain("a", 8), chain("b", 8)


NONE = Shape(modes=(), watermark=0.0)


def engine(slots: int = 8) -> Engine:
    return started(NONE._replace(slots=slots))


def test_as_many_as_fit_are_taken_in_order_and_the_rest_is_offered_again() -> None:
    made = engine(slots=3)
    arrive(made, "r", A)
    plan = made.ranks.stored(made.cache.plan_store("r", A[:5]))
    assert (plan.keys, plan.no_room) == (tuple(A[:3]), tuple(A[3:5]))
    assert len(set(plan.slots)) == 3
    assert made.cache.stats().store_refusals == {Why.NO_ROOM: 2}
    assert not made.cache.room()


def test_a_chunk_is_readable_only_when_every_rank_has_copied_it() -> None:
    made = engine()
    arrive(made, "r", A)
    plan = made.ranks.stored(made.cache.plan_store("r", A[:2]))
    assert not made.cache.lookup("r", A[0])
    made.ranks.finish(plan.plan_id)
    assert made.cache.lookup("r", A[0])
    assert made.cache.lookup("r", A[1])


def test_a_chunk_that_failed_on_a_rank_is_not_there_and_its_slot_is_free() -> None:
    made = engine(slots=2)
    arrive(made, "r", A)
    plan = made.ranks.stored(made.cache.plan_store("r", A[:2]))
    made.ranks.finish(plan.plan_id, [A[1]])
    assert here(made, A[:2]) == [True, False]
    assert made.cache.stats().free_slots == 1


def test_an_unknown_or_repeated_finish_is_ignored() -> None:
    made = engine()
    arrive(made, "r", A)
    plan = store(made, "r", A[:1])
    made.cache.finish(plan.plan_id)
    made.cache.finish(12345)
    made.verify()


def test_resident_and_storing_chunks_are_not_taken_again() -> None:
    made = engine()
    arrive(made, "r", A)
    store(made, "r", A[:2])
    made.ranks.stored(made.cache.plan_store("r", A[:3]))
    plan = made.cache.plan_store("r", A[:4])
    assert plan.keys == (A[3],)
    assert plan.no_room == ()


def test_a_chunk_without_its_parent_is_refused() -> None:
    made = engine()
    arrive(made, "r", A)
    plan = made.cache.plan_store("r", A[2:4])
    assert plan == StorePlan(0, (), (), ())
    assert made.cache.stats().store_refusals == {Why.ORPHAN: 2}


def test_a_window_chunk_needs_no_parent() -> None:
    made = Engine(Shape(modes=(), hybrid=True))
    window = chain("a", 4, group=1)
    made.cache.arrive("r", [A[:4], window])
    assert made.cache.plan_store("r", window[2:]).keys == tuple(window[2:])


def test_unknown_requests_and_keys_store_nothing() -> None:
    made = engine()
    assert made.cache.plan_store("nobody", A).keys == ()
    arrive(made, "r", A)
    assert made.cache.plan_store("r", B).keys == ()


def test_decoded_chunks_can_be_stored_after_extend() -> None:
    made = engine()
    arrive(made, "r", A[:2])
    made.cache.extend("r", 0, A[2:3])
    made.cache.extend("nobody", 0, A[3:4])
    assert store(made, "r", A[:3]).keys == tuple(A[:3])


def test_the_least_recently_used_tail_makes_room() -> None:
    made = engine(slots=4)
    arrive(made, "a", A)
    store(made, "a", A[:2])
    arrive(made, "b", B)
    store(made, "b", B[:2])
    made.cache.plan_store("a", A[:2])  # offered again: a touch
    store(made, "a", A[:3])
    assert here(made, A[:3]) == [True, True, True]
    assert here(made, B[:2]) == [True, False]
    assert made.cache.stats().dropped == 1


def test_room_is_never_made_at_the_cost_of_the_prefix_that_is_stored() -> None:
    made = engine(slots=2)
    arrive(made, "r", A)
    store(made, "r", A[:2])
    plan = made.cache.plan_store("r", A[:3])
    assert plan == StorePlan(0, (), (), (A[2],))
    assert here(made, A[:2]) == [True, True]
    made.verify()


def test_all_slots_pinned_means_no_store_and_nobody_waits() -> None:
    made = engine(slots=2)
    arrive(made, "a", A)
    store(made, "a", A[:2])
    assert made.cache.plan_read("a", A[:2]) is None
    arrive(made, "b", B)
    assert made.cache.plan_store("b", B[:1]).no_room == (B[0],)
    assert not made.cache.room()
    made.cache.cancel("a")
    assert made.cache.room()
    assert store(made, "b", B[:1]).keys == (B[0],)


def test_a_request_alive_at_a_reset_stores_nothing_until_it_is_preempted() -> None:
    made = engine()
    arrive(made, "r", A)
    arrive(made, "fresh", B)
    made.ranks.reset(stale=["r"])
    assert made.cache.plan_store("r", A[:1]).keys == ()
    assert store(made, "fresh", B[:1]).keys == (B[0],)
    made.cache.preempted("r")
    assert store(made, "r", A[:1]).keys == (A[0],)


def test_requests_that_stored_or_loaded_are_stale_after_any_reset() -> None:
    made = engine()
    arrive(made, "r", A)
    store(made, "r", A[:1])
    made.ranks.reset(stale=[])
    assert made.cache.plan_store("r", A[:1]).keys == ()


def test_a_store_under_way_at_a_reset_keeps_its_slot_until_it_ends() -> None:
    made = engine(slots=1)
    arrive(made, "r", A)
    plan = made.ranks.stored(made.cache.plan_store("r", A[:1]), 0)
    made.ranks.reset()
    arrive(made, "s", A)
    assert made.cache.plan_store("s", A[:1]).no_room == (A[0],)
    assert made.cache.stats().quarantined_slots == 1
    made.ranks.finish(plan.plan_id)
    assert here(made, A[:1]) == [False]
    assert store(made, "s", A[:1]).keys == (A[0],)


@pytest.mark.parametrize("mode", list(WriteMode))
def test_what_lora_requests_store_stays_in_tier_0(mode: WriteMode) -> None:
    made = started(NONE._replace(slots=2, modes=(mode,)))
    arrive(made, "lora", A, persist=False)
    store(made, "lora", A[:2])
    made.cache.plan_read("lora", A[:2])
    made.cache.cancel("lora")
    arrive(made, "again", A, persist=False)
    made.cache.plan_read("again", A[:2])
    made.cache.depart("again")
    arrive(made, "b", B)
    store(made, "b", B[:2])
    for _ in range(3):
        made.step()
    written = [op.key for op in made.ranks.sent if op.kind is OpKind.WRITE]
    assert not set(written) & set(A)
    assert here(made, A[:2]) == [False, False]


def test_nothing_can_be_stored_before_the_start() -> None:
    made = Engine(Shape(modes=()))
    early = type(made.cache)(
        groups=made.cache.view.groups,
        ranks=1,
        tier0=LruPolicy,
        lower=[],
    )
    early.arrive("r", [A])
    assert early.plan_store("r", A[:1]).no_room == (A[0],)
    assert early.drain() == []
    assert not early.awake()
    early.check()


def test_a_write_uses_the_largest_record_until_it_is_answered() -> None:
    made = started(NONE._replace(modes=(WriteMode.THROUGH,)))
    arrive(made, "r", A)
    store(made, "r", A[:1])
    made.ranks.drain()
    assert made.cache.stats().tiers[1].used == RECORD
    (write,) = made.ranks.pending.values()
    assert write.priority is Priority.WRITE
    made.cache.complete([])
    made.ranks.answer_all(OpStatus.OK)
    assert made.cache.stats().tiers[1].used == RECORD
    assert made.cache.stats().tiers[1].chunks == 1
