"""What the brain tells policies, and what it does with their answers."""

from collections.abc import Callable, Sequence

import pytest

from kvtier.brain import TieredCache, TierSpec, Why
from kvtier.brain.prefetch import Agenda
from kvtier.facts import RequestFacts, RequestHints, TierFacts
from kvtier.policies.admission.second_use import SecondUsePolicy
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.policies.prefetch.arrival import ArrivalPolicy
from kvtier.policy import AdmissionPolicy, Move, PrefetchPolicy
from kvtier.sim.blocks import serve
from kvtier.types import BlockKey, OpKind, OpResult, OpStatus, Priority, TierOp, WriteMode
from tests.brain.fake_engine import rest
from tests.brain.fake_ranks import FULL, RECORD, WINDOW, Clock, Ranks, chain

A, B, C = chain("a", 3), chain("b", 3), chain("c", 3)
NVME = TierSpec(
    name="nvme",
    capacity=100 * RECORD,
    write=WriteMode.ON_EVICT,
    deadline_s=2.0,
    persistent=True,
    eviction=LruPolicy,
)


class Hearing(LruPolicy):
    """LRU that writes down what it is told."""

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self.heard: list[tuple[str, RequestFacts]] = []
        self.touched: list[BlockKey] = []

    def arrived(self, request: RequestFacts) -> None:
        self.heard.append(("arrived", request))

    def started(self, request: RequestFacts) -> None:
        self.heard.append(("started", request))

    def departed(self, request: RequestFacts) -> None:
        self.heard.append(("departed", request))

    def touch(self, key: BlockKey) -> None:
        self.touched.append(key)
        super().touch(key)


def one_tier(
    slots: int, admission: Callable[[TierFacts], AdmissionPolicy] | None = None
) -> tuple[TieredCache, Hearing]:
    made = TieredCache(
        groups=[FULL], ranks=1, tier0=Hearing, lower=[], admission=admission, clock=Clock()
    )
    made.open(slots, "{}")
    policy = made.view.policy(0)
    assert isinstance(policy, Hearing)
    return made, policy


def two_tiers(
    slots: int, prefetch: Callable[[TierFacts], PrefetchPolicy]
) -> tuple[TieredCache, Ranks, Clock]:
    clock = Clock()
    made = TieredCache(
        groups=[FULL],
        ranks=1,
        tier0=LruPolicy,
        lower=[NVME],
        prefetch=[prefetch],
        clock=clock,
        low_watermark=0.0,
    )
    ranks = Ranks(made, 1, slots, 1)
    made.open(slots, "{}")
    return made, ranks, clock


def test_a_policy_hears_of_a_request_three_times_with_its_hints() -> None:
    made, policy = one_tier(8)
    hints = RequestHints(session="s", priority=3, ttl_s=9.0, session_end=True)
    made.arrive("r", [A[:2]], hints=hints)
    made.extend("r", 0, A[2:])
    made.finish(made.plan_store("r", A).plan_id)
    made.plan_store("r", A)
    made.depart("r")
    assert [what for what, _ in policy.heard] == ["arrived", "started", "departed"]
    facts = policy.heard[-1][1]
    assert (facts.name, facts.hints, facts.arrived_s) == ("r", hints, 100.0)
    assert (list(facts.keys), facts.tokens) == (A, 48)


def test_a_use_is_noted_once_per_request() -> None:
    made, policy = one_tier(8)
    serve(made, "r1", A)
    assert policy.touched == []
    serve(made, "r2", A)
    assert policy.touched == A[::-1]


def test_what_a_waiting_request_needs_is_no_victim() -> None:
    made, _ = one_tier(6)
    serve(made, "r1", A)
    serve(made, "r2", B)
    made.arrive("waiting", [A])
    serve(made, "r3", C)
    assert serve(made, "again", A) == 3
    assert serve(made, "again", B) == 0
    made.depart("waiting")
    assert not made.view.awaited
    made.check()


def test_what_waiting_requests_need_goes_when_nothing_else_can() -> None:
    made, _ = one_tier(6)
    serve(made, "r1", A)
    serve(made, "r2", B)
    made.arrive("w1", [A])
    made.arrive("w2", [B])
    assert serve(made, "r3", C) == 0
    assert serve(made, "again", C) == 3
    made.check()


def test_a_window_group_waits_for_its_window_only() -> None:
    window = chain("a", 4, group=1)
    made = TieredCache(groups=[FULL, WINDOW], ranks=1, tier0=LruPolicy, lower=[])
    made.open(20, "{}")
    full = chain("a", 4)
    made.arrive("r", [full, window])
    made.finish(made.plan_store("r", [*full, *window]).plan_id)
    made.depart("r")
    made.arrive("waiting", [full, window])
    assert sorted(made.view.awaited) == sorted([full[-1], *window[-2:]])


def test_dram_admits_by_its_policy() -> None:
    made, _ = one_tier(8, lambda facts: SecondUsePolicy(SecondUsePolicy.Config(), facts))
    serve(made, "r1", A)
    assert made.stats().stores == 0
    assert made.stats().store_refusals == {Why.NOT_ADMITTED: 3}
    assert serve(made, "r2", A) == 0
    assert serve(made, "r3", A) == 3


def test_facts_are_those_of_the_tier() -> None:
    made, policy = one_tier(8)
    facts = policy.facts
    assert facts.capacity == 8 * FULL.nbytes
    assert facts.score(A[0]) is None
    serve(made, "r1", A)
    made.prefilled(1000, 1.0)
    assert facts.nbytes(A[0]) == FULL.nbytes
    assert facts.seconds(A[2]) > facts.seconds(A[0]) > 16e-3
    assert facts.seconds(A[0]) == pytest.approx(16e-3, rel=1e-3)
    assert facts.prefill_s(0, 48) == pytest.approx(sum(map(facts.seconds, A)))
    assert facts.read_s(100) == 0
    made.transferred(1000, 2.0)
    assert facts.read_s(100) == pytest.approx(0.2)


class Later(PrefetchPolicy):
    """Sends a session down when its request ends, and up again 10 s later."""

    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        return ()

    def departed(self, request: RequestFacts) -> Sequence[Move]:
        now = self.facts.clock()
        return [Move(request.keys, up=False), Move(request.keys, at_s=now + 10)]


def test_a_move_waits_for_its_time_and_keeps_nobody_awake() -> None:
    made, ranks, clock = two_tiers(8, Later)
    ranks.settle()
    ranks.list_all(1, 0)
    made.arrive("r", [A])
    ranks.finish(ranks.stored(made.plan_store("r", A)).plan_id)
    made.depart("r")
    ranks.settle()
    assert [made.view.holds(0, key) for key in A] == [False] * 3
    assert not made.awake()
    clock.now += 9
    ranks.settle()
    assert not made.view.holds(0, A[0])
    clock.now += 2
    ranks.settle()
    assert [made.view.holds(0, key) for key in A] == [True] * 3
    assert made.stats().prefetches == 3
    made.check()


class SinksThenComes(Later):
    """Sinks at a departure what an arrival reads ahead."""

    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        return [Move(request.keys)]

    def departed(self, request: RequestFacts) -> Sequence[Move]:
        return [Move(request.keys, up=False)]


@pytest.mark.parametrize("reads", [True, False])
def test_nothing_is_read_ahead_of_a_request_that_will_not_ask(reads: bool) -> None:
    made, ranks, _ = two_tiers(8, SinksThenComes)
    ranks.settle()
    ranks.list_all(1, 0)
    made.arrive("r", [A])
    ranks.finish(ranks.stored(made.plan_store("r", A)).plan_id)
    made.depart("r")
    ranks.settle()
    assert not made.view.holds(0, A[0])
    made.arrive("again", [A], reads=reads)
    ranks.settle()
    assert [made.view.holds(0, key) for key in A] == [reads] * 3
    assert made.stats().prefetches == 3 * reads
    made.check()


def test_what_a_live_request_has_in_its_prefix_does_not_sink() -> None:
    made, ranks, _ = two_tiers(16, Later)
    ranks.settle()
    ranks.list_all(1, 0)
    ours, theirs = chain("s", 4), [*chain("s", 2), *chain("t", 2)]
    for name, keys in (("ours", ours), ("theirs", theirs)):
        made.arrive(name, [keys])
        ranks.finish(ranks.stored(made.plan_store(name, keys)).plan_id)
    made.depart("ours")
    ranks.settle()
    assert [made.view.holds(0, key) for key in ours] == [True, True, False, False]
    assert all(made.view.holds(0, key) for key in theirs)
    made.check()


def test_nothing_sinks_onto_a_tier_that_rests() -> None:
    made, ranks, _ = two_tiers(8, Later)
    ranks.settle()
    ranks.list_all(1, 0)
    ranks.drain()
    made.arrive("r", [A])
    ranks.finish(ranks.stored(made.plan_store("r", A)).plan_id)
    assert made._demotion._save(A[0], {})
    ranks.settle()  # it has a record, and is still here
    rest(made)
    assert not made.view.serving(1)
    made.depart("r")
    ranks.drain()
    assert made.view.holds(0, A[0])
    made.check()


def test_a_request_that_left_moves_nothing_any_more() -> None:
    made, _, _ = two_tiers(4, ArrivalPolicy)
    made.arrive("r", [A])
    known = made.view.requests["r"]
    assert not known.started
    made.depart("r")
    assert known.started


def test_of_too_many_moves_the_nearest_stay_and_a_few_are_due_at_once() -> None:
    clock = Clock()
    agenda = Agenda(clock)
    agenda.add(Move(A, at_s=clock() + 1 + n % 7000) for n in range(0, 7000 * 3, 3))
    assert len(agenda) <= 4096
    clock.now += 1e6
    due = agenda.due()
    assert 0 < len(due) < 100
    assert [move.at_s for move in due] == sorted(move.at_s for move in due)
    assert due[0].at_s == min(move.at_s for move in due) == agenda_start(clock)


def agenda_start(clock: Clock) -> float:
    return clock() - 1e6 + 1


def test_a_request_that_stores_nothing_says_that_it_runs() -> None:
    made, policy = one_tier(4)
    serve(made, "first", A)
    made.arrive("r", [A])
    assert made.view.awaited
    made.refuse_store("r", 0, Why.HINT)
    assert not made.view.awaited
    assert policy.heard[-1][0] == "started"
    made.refuse_store("unknown", 0, Why.HINT)


class Scored(LruPolicy):
    """LRU that would like scores."""

    scored = True


def scoring(slots: int = 8) -> tuple[TieredCache, list[TierOp]]:
    """Make a brain whose first chunks are stored, and take what it orders."""
    made = TieredCache(groups=[FULL], ranks=1, tier0=Scored, lower=[NVME], low_watermark=0.0)
    made.open(slots, "{}")
    (start,) = made.drain()
    made.complete([OpResult(0, start.op, OpStatus.OK)])
    serve(made, "r", A)
    return made, made.drain()


def test_what_was_stored_is_scored_at_leisure() -> None:
    made, ops = scoring()
    facts = made.view.policy(0).facts
    assert [(op.kind, op.key, op.priority) for op in ops] == [
        (OpKind.SCORE, key, Priority.IDLE) for key in A
    ]
    assert len({op.target for op in ops}) == 3
    norms = [4.0, 6.0, 5.0]
    answers = [OpResult(0, op.op, OpStatus.OK, score=n) for op, n in zip(ops, norms, strict=True)]
    made.complete(answers)
    scores = [facts.score(key) for key in A]
    assert all(score is not None and 0 < score < 1 for score in scores)
    serve(made, "s", B)
    fresh = made.drain()
    low, high, _ = [
        OpResult(0, op.op, OpStatus.OK, score=n)
        for op, n in zip(fresh, [1.0, 9.0, 5.0], strict=True)
    ]
    made.complete([low, high])
    assert (facts.score(B[0]) or 0) > 0.9
    assert (facts.score(B[1]) or 1) < 0.1
    assert facts.score(B[2]) is None
    made.check()


def test_a_score_of_a_slot_that_changed_hands_is_thrown_away() -> None:
    made, ops = scoring(slots=3)
    made.reset("{}")
    made.complete([OpResult(0, op.op, OpStatus.OK, score=1.0) for op in ops])
    assert made.view.score(A[0]) is None
    made.check()


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_norm_that_is_no_number_spoils_no_other_score(norm: float) -> None:
    made, ops = scoring()
    norms = [norm, 2.0, 3.0]
    answers = [OpResult(0, op.op, OpStatus.OK, score=n) for op, n in zip(ops, norms, strict=True)]
    made.complete(answers)
    assert made.view.score(A[0]) is None
    assert made.view.score(A[2]) is not None


def test_no_layout_no_more_scores(caplog: pytest.LogCaptureFixture) -> None:
    made, ops = scoring()
    made.complete([OpResult(0, op.op, OpStatus.MISSING) for op in ops])
    serve(made, "s", B)
    assert not [op for op in made.drain() if op.kind is OpKind.SCORE]
    assert "go by recency" in caplog.text
    assert made.stats().tiers[1].failures == {}
