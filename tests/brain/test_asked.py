"""A tier whose room is not ours: present by answer, never listed, never removed from, never in a slot's way."""

import pytest

from kvtier.types import OpKind, OpStatus, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, below, sent, started, stored, tier_of
from tests.brain.fake_ranks import chain

ASKED = Shape(slots=12, modes=(WriteMode.THROUGH,), watermark=0.0, asked=True)
A, B = chain("a", 3), chain("b", 12)


def with_a_in_it() -> Engine:
    made = started(ASKED)
    stored(made, A)
    made.ranks.settle()
    made.ranks.sent.clear()
    return made


def test_it_has_no_room_to_account() -> None:
    made = with_a_in_it()
    assert made.cache.view.tier(1).capacity is None
    assert (tier_of(made).used, tier_of(made).capacity, tier_of(made).chunks) == (0, 0, 3)
    made.verify()


def test_what_was_written_there_is_read_from_there() -> None:
    made = with_a_in_it()
    stored(made, B)  # drives A out of tier 0
    made.ranks.settle()
    made.ranks.sent.clear()
    arrive(made, "r", A)
    assert made.cache.lookup("r", A[0])
    plan = made.cache.plan_read("r", A)
    assert plan is not None
    assert plan.reading == 3
    assert [op.key for op in sent(made, OpKind.READ)] == A
    made.ranks.answer_all()
    assert made.cache.plan_read("r", A) is None
    made.verify()


@pytest.mark.parametrize("status", [OpStatus.MISSING, OpStatus.CORRUPT])
def test_a_record_that_is_gone_is_forgotten_and_not_removed(status: OpStatus) -> None:
    made = with_a_in_it()
    stored(made, B)
    made.ranks.settle()
    arrive(made, "r", A[:1])
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.ranks.answer_all(status, [OpKind.READ])
    made.ranks.settle()
    assert below(made, A) == [False, True, True]
    assert not [op for op in made.ranks.sent if op.kind in (OpKind.REMOVE, OpKind.RECLAIM)]
    made.verify()


def test_a_write_that_failed_leaves_nothing_to_remove() -> None:
    made = started(ASKED)
    stored(made, A[:1])
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR, [OpKind.WRITE])
    made.ranks.settle()
    assert below(made, A[:1]) == [False]
    assert not [op for op in made.ranks.sent if op.kind is OpKind.REMOVE]
    made.verify()


def test_a_victim_does_not_wait_for_it() -> None:
    made = started(ASKED._replace(modes=(WriteMode.ON_EVICT,)))
    stored(made, A)
    arrive(made, "b", B)
    plan = made.cache.plan_store("b", B)
    assert plan.keys == tuple(B), "the slots were free at once"
    assert made.cache.view.leaving == 0
    assert not [op for op in made.ranks.drain() if op.kind is OpKind.WRITE]


def test_lists_are_not_expected_and_not_believed() -> None:
    made = Engine(ASKED)
    made.step()
    made.ranks.list_all(1, 0)
    assert made.cache.view.pending() == []
    assert not made.cache.awake()
    made.verify()
