"""A tier whose room is not ours: present by answer, never listed, never removed from, never in a slot's way."""

import pytest

from kvtier.brain import ReadPlan, Why
from kvtier.types import BlockKey, Medium, OpKind, OpStatus, WriteMode
from tests.brain.fake_engine import (
    Engine,
    Shape,
    arrive,
    below,
    sent,
    started,
    store,
    stored,
    tier_of,
)
from tests.brain.fake_ranks import Content, chain

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


# what it is asked


def over(made: Engine) -> None:
    """Let all requests leave and everything end; nothing is left then."""
    for name in list(made.cache.view.requests):
        made.cache.depart(name)
    made.end()


def asked_for(made: Engine) -> list[list[bytes]]:
    return [list(op.keys) for op in made.ranks.sent if op.kind is OpKind.ASK]


def with_peers(keys: list[BlockKey], shape: Shape = ASKED) -> Engine:
    """Make an engine over a store in which somebody else has written."""
    made = started(shape)
    for rank in made.ranks.ranks:
        rank.records[1] = {key: Content(key, 0) for key in keys}
    return made


def output(made: Engine) -> None:
    """Let the output of the last step come, without an answer."""
    made.cache.asks.heard(made.cache.asks.round)


def waits(made: Engine, name: str, computed: int = 0) -> bool:
    return made.cache.asks.waits(name, computed)


def test_what_a_peer_wrote_is_found_and_read() -> None:
    made = with_peers(A)
    arrive(made, "r", B[:1])
    arrive(made, "s", A)
    assert waits(made, "s")
    assert not waits(made, "s", computed=48), "the device has it all"
    arrive(made, "s", A)
    made.step()
    assert asked_for(made) == [B[:1], A]
    assert not waits(made, "s")
    assert [made.cache.lookup("s", key) for key in A] == [True] * 3
    assert made.cache.plan_read("s", A) == ReadPlan(3, tuple(A))
    made.step()
    assert made.cache.plan_read("s", A) is None
    assert tier_of(made).hits == 3
    assert made.cache.view.unlinked == 0
    over(made)


def test_half_of_a_prefix_is_found_and_its_end_is_absent_for_a_moment() -> None:
    made = with_peers(A[:2])
    for name in "rs":
        arrive(made, name, A)
        made.step()
        assert not waits(made, name)
    assert asked_for(made) == [A]
    made.clock.now += 2.1
    arrive(made, "t", A)
    made.step()
    assert asked_for(made) == [A, A[2:]]
    assert below(made, A) == [True, True, False]
    made.verify()


def test_a_request_waits_for_the_budget_and_for_the_step_with_which_an_answer_could_come() -> None:
    made = with_peers(A)
    arrive(made, "r", A)
    made.clock.now += 0.5
    assert waits(made, "r"), "nothing was handed over yet"
    made.ranks.drain()
    made.clock.now += 1.0
    assert waits(made, "r"), "the step is not over"
    output(made)
    assert not waits(made, "r"), "its output came without an answer"
    assert tier_of(made).late_asks == 1
    assert made.cache.fell_short("r", 0) is Why.ASKED_LATE
    made.ranks.answer_all()
    assert below(made, A) == [True] * 3, "a late answer teaches"
    made.verify()


def test_a_fast_step_waits_for_the_budget_and_a_step_without_end_for_the_deadline() -> None:
    made = with_peers(A)
    arrive(made, "r", A)
    made.ranks.drain()
    output(made)
    made.clock.now += 0.09
    assert waits(made, "r")
    made.clock.now += 0.02
    assert not waits(made, "r")
    arrive(made, "s", B)
    made.ranks.drain()
    made.clock.now += 1.9
    assert waits(made, "s")
    made.clock.now += 0.2
    assert not waits(made, "s")
    made.ranks.answer_all()
    over(made)


def test_a_black_hole_costs_five_requests_their_budget_and_then_nobody_anything() -> None:
    made = started(ASKED)
    waited = 0
    for i in range(8):
        arrive(made, f"r{i}", chain(f"{i}", 3))
        made.ranks.drain()
        output(made)
        waited += waits(made, f"r{i}")
        made.clock.now += 0.11
        assert not waits(made, f"r{i}")
    assert waited == 5
    assert tier_of(made).resting
    assert (tier_of(made).asks, tier_of(made).late_asks) == (5, 5)
    made.ranks.answer_all(OpStatus.ERROR)
    assert made.cache.stats().tiers[1].failures[OpStatus.ERROR] == 5
    over(made)


def test_whoever_asks_for_what_is_late_does_not_wait_again() -> None:
    made = with_peers(A)
    arrive(made, "r", A)
    made.ranks.drain()
    output(made)
    made.clock.now += 0.11
    assert not waits(made, "r")
    arrive(made, "s", A)
    assert not waits(made, "s")
    made.verify()


def test_requests_that_share_a_prefix_ask_for_it_once_and_each_for_its_own_rest() -> None:
    shared = chain("s", 2)
    one, two = [*shared, *chain("one", 2)], [*shared, *chain("two", 2)]
    made = with_peers([*one, *two])
    arrive(made, "one", one)
    arrive(made, "two", two)
    made.step()
    assert asked_for(made) == [one, two[2:]]
    assert not waits(made, "two")
    assert below(made, [*one, *two]) == [True] * 8
    made.verify()


def test_what_is_here_is_not_asked_for() -> None:
    made = with_peers(B[:4])
    stored(made, B[:2])
    made.ranks.settle()
    made.ranks.sent.clear()
    arrive(made, "r", B[:4])
    made.step()
    assert asked_for(made) == [B[2:4]]
    over(made)


def test_who_may_not_read_and_what_is_faster_computed_is_not_asked_for() -> None:
    made = with_peers(A, ASKED._replace(medium=Medium(read=1e9, latency_s=0.5)))
    made.cache.arrive("r", [A], reads=False)
    made.cache.arrive("l", [A], persist=False)
    made.cache.prefilled(1000, 0.1)
    arrive(made, "s", A)
    made.step()
    assert asked_for(made) == []
    made.cache.prefilled(1000, 1e6)
    arrive(made, "t", A)
    made.step()
    assert asked_for(made) == [A]


def test_a_step_carries_so_many_keys_and_the_longest_waiting_first() -> None:
    made = started(ASKED)
    for i in range(5):
        arrive(made, f"r{i}", chain(f"{i}", 1500))
    found = []
    for _ in range(3):
        made.step()
        found.append(len(asked_for(made)))
        made.ranks.sent.clear()
    assert found == [2, 2, 1]
    made.verify()


# what it is believed to have


def believing() -> Engine:
    made = with_peers(A)
    arrive(made, "r", A)
    made.step()
    assert below(made, A) == [True] * 3
    return made


def test_a_belief_ends_and_not_while_its_record_is_read() -> None:
    made = believing()
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.clock.now += 61
    made.ranks.drain()
    assert below(made, A) == [True, False, False]
    made.ranks.answer_all(OpStatus.MISSING, [OpKind.READ])
    assert below(made, A) == [False] * 3
    made.verify()
    over(made)


@pytest.mark.parametrize(
    "status", [OpStatus.MISSING, OpStatus.CORRUPT, OpStatus.ERROR, OpStatus.DIED]
)
def test_a_read_that_failed_ends_the_belief_and_nobody_asks_again_at_once(status: OpStatus) -> None:
    made = believing()
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.ranks.answer_all(status, [OpKind.READ])
    made.ranks.sent.clear()
    arrive(made, "s", A)
    assert not made.cache.lookup("s", A[0])
    assert not waits(made, "s")
    made.step()
    assert asked_for(made) == []
    made.verify()


def test_an_answer_that_a_write_overtook_counts_once() -> None:
    made = with_peers(A)
    arrive(made, "r", A)
    store(made, "r", A)
    made.ranks.drain()
    kinds = {op.kind for op in made.ranks.pending.values()}
    assert kinds >= {OpKind.ASK, OpKind.WRITE}
    made.ranks.answer_all(kinds=[OpKind.ASK])
    made.verify()
    made.ranks.answer_all()
    assert tier_of(made).chunks == 3
    made.verify()


def test_a_belief_keeps_nothing_and_is_nobodys_parent() -> None:
    made = believing()
    arrive(made, "s", A)
    plan = made.cache.plan_store("s", A[1:])
    assert plan.keys == (), "its parent is somewhere else, perhaps"
    stored(made, A)
    made.ranks.settle()
    made.cache.depart("stored")
    stored(made, B)
    assert made.cache.stats().dropped == 3, "a belief is no copy of ours"
    made.verify()


def test_a_store_that_is_full_is_read_and_not_written_to() -> None:
    made = with_peers(A)
    stored(made, B[:1])
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.NO_ROOM, [OpKind.WRITE])
    stored(made, B[:3])
    made.ranks.settle()
    assert [op.key for op in sent(made, OpKind.WRITE)] == B[:1], "that was the first try"
    arrive(made, "r", A)
    made.step()
    assert below(made, A) == [True] * 3
    made.clock.now += 10
    made.ranks.settle()
    assert below(made, B[:3]) == [False, True, True], "what was refused is not tried again"


def test_answers_to_questions_close_nothing_that_reads_opened() -> None:
    made = with_peers(chain("x", 40))
    for i in range(5):
        made.clock.now += 3
        keys = chain("x", 40)[: i + 1]
        arrive(made, f"r{i}", keys)
        made.step()
        made.cache.plan_read(f"r{i}", keys[-1:])
        made.ranks.drain()
        made.ranks.answer_all(OpStatus.ERROR, [OpKind.READ])
    assert tier_of(made).resting
    made.verify()


# a reset


def test_a_reset_leaves_it_to_the_others() -> None:
    made = believing()
    made.ranks.drain()
    made.ranks.reset()
    made.ranks.settle()
    assert not [op for op in made.ranks.sent if op.kind in (OpKind.RESET, OpKind.REMOVE)]
    made.ranks.sent.clear()
    arrive(made, "s", A)
    stored(made, B)
    made.ranks.settle()
    assert made.ranks.sent == []
    assert below(made, A) == [False] * 3
    assert made.cache.view.pending() == []
    assert set(made.ranks.ranks[0].records[1]) == set(A)
    over(made)


def test_an_answer_of_before_a_reset_teaches_nothing() -> None:
    made = with_peers(A)
    arrive(made, "r", A)
    made.ranks.drain()
    made.ranks.reset()
    assert not waits(made, "r")
    made.ranks.answer_all()
    assert below(made, A) == [False] * 3
    over(made)


def test_workers_that_were_called_leave_it_to_the_others() -> None:
    made = believing()
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.cache.leave_shared()
    made.ranks.answer_all()
    made.ranks.sent.clear()
    arrive(made, "s", B)
    stored(made, B)
    made.ranks.settle()
    assert made.ranks.sent == []
    assert made.cache.fell_short("s", 192) is None
    made.clock.now += 61
    over(made)


def test_who_comes_while_it_opens_or_is_asked_too_much_asks_later() -> None:
    made = Engine(ASKED)
    arrive(made, "early", A)
    assert not waits(made, "early")
    made.step()
    assert waits(made, "early"), "it is open"
    for i in range(70):
        arrive(made, f"r{i}", chain(f"{i}", 1))
    assert not waits(made, "r69")
    made.step()
    assert waits(made, "r69")
    made.step()
    over(made)
