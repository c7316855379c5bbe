"""A tier below: its bytes and its health."""

from collections.abc import Container, Sequence

import pytest

from kvtier.brain import ReadPlan, Why
from kvtier.brain.breaker import Breaker, BreakerState
from kvtier.brain.removals import Removals
from kvtier.types import BlockKey, OpKind, OpResult, OpStatus, Priority, WriteMode
from tests.brain.fake_engine import (
    Engine,
    Shape,
    arrive,
    below,
    put,
    sent,
    started,
    stored,
    tier_of,
)
from tests.brain.fake_ranks import RECORD, Clock, chain

A, B = chain("a", 8), chain("b", 8)
THROUGH = Shape(slots=16, capacity=4, modes=(WriteMode.THROUGH,), watermark=0.0)


def test_the_bytes_of_an_answer_replace_what_was_reserved() -> None:
    made = started(THROUGH)
    stored(made, A[:1])
    made.ranks.drain()
    (write,) = made.ranks.pending
    made.cache.complete([OpResult(0, write, OpStatus.OK, 4096)])
    assert tier_of(made).used == 4096


def test_what_was_written_is_counted_by_its_encoding() -> None:
    made = started(THROUGH)
    stored(made, A[:3])
    made.ranks.drain()
    for write, codec in zip(
        [*made.ranks.pending], ["planes+zstd", "raw", "planes+zstd"], strict=True
    ):
        made.cache.complete([OpResult(0, write, OpStatus.OK, 4096, codec=codec)])
    assert tier_of(made).codecs == {"planes+zstd": 2, "raw": 1}


def test_room_is_made_by_the_tiers_own_policy_and_counts_when_every_rank_answered() -> None:
    made = started(THROUGH)
    stored(made, A[:4])
    for _ in range(3):
        made.step()
    stored(made, B[:1])
    made.ranks.drain()
    removes = sent(made, OpKind.REMOVE)
    assert removes
    assert removes[0].key == A[3]
    used = tier_of(made).used
    assert used <= 4 * RECORD
    made.ranks.answer_all(kinds=(OpKind.REMOVE,))
    assert tier_of(made).used < used
    for _ in range(4):
        made.step()
        made.verify()
    assert below(made, B[:1]) == [True]
    assert tier_of(made).evictions >= 1


def test_a_record_that_is_being_read_is_no_victim() -> None:
    made = started(THROUGH._replace(capacity=2, found=(("a", 0), ("a", 1))))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    made.ranks.drain()
    for _ in range(3):
        made.ranks.drain()
    assert not sent(made, OpKind.REMOVE)


def test_foreign_bytes_go_before_our_own() -> None:
    made = Engine(THROUGH._replace(ranks=2))
    opens = [op for op in made.ranks.drain() if op.kind is OpKind.OPEN]
    foreign = [2 * RECORD, 3 * RECORD]
    for rank, nbytes in enumerate(foreign):
        made.cache.complete([OpResult(rank, opens[0].op, OpStatus.OK, nbytes)])
    made.ranks.pending.clear()
    assert tier_of(made).foreign == 2 * 3 * RECORD, "as if both were as full as the fullest rank"
    made.list_all()
    made.ranks.drain()
    stored(made, A[:2])
    made.step()
    made.ranks.drain()
    (reclaim,) = sent(made, OpKind.RECLAIM)
    assert reclaim.nbytes > 0
    assert not sent(made, OpKind.REMOVE)
    for rank in range(2):
        made.cache.complete([OpResult(rank, reclaim.op, OpStatus.OK, 0)])
    assert tier_of(made).foreign == 0


def test_foreign_bytes_that_stay_are_asked_for_again_only_later() -> None:
    made = Engine(THROUGH)
    (op,) = [op for op in made.ranks.drain() if op.kind is OpKind.OPEN]
    made.cache.complete([OpResult(0, op.op, OpStatus.OK, 4 * RECORD)])
    made.ranks.pending.clear()
    made.list_all()
    for _ in range(5):
        for reclaim in [op for op in made.ranks.drain() if op.kind is OpKind.RECLAIM]:
            made.cache.complete([OpResult(0, reclaim.op, OpStatus.OK, 4 * RECORD)])
    assert len(sent(made, OpKind.RECLAIM)) == 1
    made.clock.now += 61
    assert len(sent(made, OpKind.RECLAIM)) == 2


def test_a_remove_that_failed_keeps_its_bytes_and_is_tried_again() -> None:
    made = started(THROUGH._replace(found=(("a", 0),)))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.CORRUPT)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR)
    assert tier_of(made).used == RECORD
    made.ranks.drain()
    assert not made.ranks.pending
    made.clock.now += 1.1
    made.step()
    assert tier_of(made).used == 0


def test_a_breaker_opens_after_failures_in_a_row_and_rests_longer_each_time() -> None:
    clock = Clock()
    breaker = Breaker(clock, limit=3, rest_s=1.0, max_rest_s=4.0)
    for _ in range(2):
        breaker.failed(OpKind.READ)
    breaker.succeeded(OpKind.READ)
    for _ in range(3):
        assert breaker.closed
        breaker.failed(OpKind.READ)
    rests = []
    for _ in range(4):
        started_at = clock.now
        while not breaker.due:
            clock.now += 0.5
        rests.append(clock.now - started_at)
        breaker.probing()
        breaker.failed(OpKind.READ)
        breaker.succeeded(OpKind.READ)
        assert breaker.state is BreakerState.PROBING
        breaker.probed(ok=False)
    assert rests == [1.0, 2.0, 4.0, 4.0]
    clock.now += 4
    breaker.probing()
    breaker.probed(ok=True)
    assert breaker.closed


def test_a_tier_that_fails_rests_is_probed_and_comes_back() -> None:
    made = started(THROUGH._replace(capacity=20, found=tuple(("a", i) for i in range(4))))
    for i in range(5):
        arrive(made, f"r{i}", A)
        made.cache.plan_read(f"r{i}", A[:1])
        made.ranks.drain()
        made.ranks.answer_all(OpStatus.ERROR)
    assert tier_of(made).breaker is BreakerState.RESTING
    assert not made.cache.lookup("new", A[0])
    stored(made, B[:1])
    made.step()
    assert not sent(made, OpKind.WRITE)
    assert not sent(made, OpKind.PROBE)
    made.clock.now += 1.1
    assert len(sent(made, OpKind.PROBE)) == 1
    assert not made.cache.awake(), "never for a probe"
    made.ranks.answer_all()
    assert made.cache.lookup("new", A[0])
    assert tier_of(made).trips == 1


def test_missing_and_corrupt_records_do_not_tire_the_tier() -> None:
    made = started(THROUGH._replace(capacity=20, found=tuple(("a", i) for i in range(8))))
    arrive(made, "r", A)
    made.cache.plan_read("r", A)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.CORRUPT)
    assert tier_of(made).breaker is BreakerState.CLOSED


def test_missed_deadlines_tire_the_tier() -> None:
    made = started(THROUGH._replace(capacity=20, found=tuple(("a", i) for i in range(8))))
    for i in range(5):
        arrive(made, f"r{i}", A)
        made.cache.plan_read(f"r{i}", A[i : i + 1])
        made.ranks.drain()
        made.clock.now += 2.1
        assert made.cache.ready(f"r{i}")
        made.ranks.drain()
        made.ranks.answer_all(OpStatus.CANCELLED, [OpKind.READ])
    assert tier_of(made).breaker is BreakerState.RESTING


@pytest.mark.parametrize("asked", [False, True])
def test_reads_ahead_that_never_had_their_turn_rest_no_tier(asked: bool) -> None:
    """They are the last in the queue of a tier that is busy, and fall due together."""
    shape = THROUGH._replace(slots=64, capacity=20, found=tuple(("a", i) for i in range(8)))
    made = started(shape._replace(prefetch=True))
    arrive(made, "r", A)
    if asked:
        made.cache.plan_read("r", A)
    assert [op.priority for op in sent(made, OpKind.READ)] == [Priority.PREFETCH] * 8
    made.ranks.answer_all(OpStatus.DEADLINE, [OpKind.READ])
    assert tier_of(made).failures == {OpStatus.DEADLINE: 8}
    assert (tier_of(made).breaker is BreakerState.RESTING) == asked


def test_a_success_of_one_verb_says_nothing_about_another() -> None:
    """A store whose names are found while its data is not."""
    breaker = Breaker(Clock(), limit=3)
    for _ in range(3):
        assert breaker.closed
        breaker.succeeded(OpKind.WRITE)
        breaker.failed(OpKind.READ)
    assert breaker.state is BreakerState.RESTING


def test_what_opened_a_breaker_is_on_trial_after_the_probe() -> None:
    clock = Clock()
    breaker = Breaker(clock, limit=3, rest_s=1.0)
    rests: list[float] = []
    for _ in range(3):
        for _ in range(3 if not rests else 1):
            assert breaker.closed
            breaker.failed(OpKind.READ)
        opened_at = clock.now
        while not breaker.due:
            clock.now += 0.5
        rests.append(clock.now - opened_at)
        breaker.probing()
        breaker.probed(ok=True)
        breaker.succeeded(OpKind.WRITE)
    assert rests == [1.0, 2.0, 4.0], "no read came through in between"
    breaker.succeeded(OpKind.READ)
    for _ in range(2):
        breaker.failed(OpKind.READ)
    assert breaker.closed


def test_a_read_that_hangs_rests_the_tier_once_and_is_waited_for_by_nobody_else() -> None:
    made = started(THROUGH._replace(capacity=20, found=tuple(("a", i) for i in range(8))))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    (hung,) = [op.op for op in made.ranks.drain() if op.kind is OpKind.READ]
    made.clock.now += 2.1
    assert made.cache.ready("r")
    arrive(made, "late", A)
    assert made.cache.plan_read("late", A[:1]) == ReadPlan(0)
    assert made.cache.stats().load_refusals == {Why.LATE: 2}
    made.clock.now += 2.1
    made.ranks.drain()
    assert tier_of(made).breaker is BreakerState.RESTING
    made.clock.now += 1.1
    made.ranks.drain()
    made.ranks.answer_all(kinds=[OpKind.PROBE])
    for i in range(1, 8):
        made.clock.now += 5
        arrive(made, f"r{i}", A)
        assert made.cache.plan_read(f"r{i}", A[i : i + 1]) == ReadPlan(1, (A[i],))
        made.ranks.drain()
        for op in [op for op in made.ranks.pending if op != hung]:
            made.ranks.answer(op, 0)
        assert made.cache.ready(f"r{i}")
    assert tier_of(made).trips == 1, "not again for the same read"
    made.ranks.answer(hung, 0)
    made.verify()


def test_a_hung_tier_takes_no_reads_from_another() -> None:
    shape = Shape(slots=16, capacity=40, modes=(WriteMode.IDLE,) * 2, watermark=0.0)
    made = started(shape)
    put(made, A)
    put(made, B, tier=2)
    arrive(made, "a", A)
    assert made.cache.plan_read("a", A) == ReadPlan(8, tuple(A))
    for i, wait in enumerate((0.0, 2.5, 30.0)):
        made.clock.now += wait
        assert made.cache.ready("a") == (wait > 0)
        made.ranks.drain()
        arrive(made, "b", B)
        keys = B[2 * i : 2 * i + 2]
        plan = made.cache.plan_read("b", keys)
        assert plan == ReadPlan(2, tuple(keys)), "half of the slots, whatever the other tier owes"
        made.ranks.drain()
        for op in [op for op, each in made.ranks.pending.items() if each.tier == 2]:
            made.ranks.answer(op, 0)
        assert made.cache.plan_read("b", keys) is None
        made.cache.depart("b")
        made.verify()


@pytest.mark.parametrize("asked", [1, 2])
def test_tiers_that_are_not_ours_share_a_quarter_of_the_slots_and_only_what_is_in_time(
    asked: int,
) -> None:
    """The first of them hangs; what it owes counts against itself for as long as it owes it."""
    made = started(Shape(slots=16, modes=(WriteMode.IDLE,) * 2, watermark=0.0, asked=2))
    put(made, A, tier=1)
    put(made, B, tier=2)
    arrive(made, "a", A)
    assert made.cache.plan_read("a", A[:6]) == ReadPlan(4, tuple(A[:4]))
    arrive(made, "b", B)
    assert made.cache.plan_read("b", B[:6]) == ReadPlan(6), "it waits for its turn"
    assert len(sent(made, OpKind.READ)) == 4
    made.clock.now += 2.1
    assert made.cache.ready("a")
    keys = (A[4:], B)[asked - 1]
    arrive(made, "c", keys)
    made.ranks.drain()
    assert made.cache.plan_read("c", keys[:2]) == (
        ReadPlan(0) if asked == 1 else ReadPlan(2, tuple(keys[:2]))
    )


def read_all(made: Engine, keys: list[BlockKey], failing: Sequence[BlockKey]) -> int:
    """Let a request read what it hits, some of it in vain; return how many of its chunks it asks for."""
    arrive(made, "r", keys)
    n = next((i for i, key in enumerate(keys) if not made.cache.lookup("r", key)), len(keys))
    if n:
        made.cache.plan_read("r", keys[:n])
    made.ranks.drain()
    for number, op in list(made.ranks.pending.items()):
        if op.kind is OpKind.READ:
            made.ranks.answer(number, 0, OpStatus.ERROR if op.key in failing else OpStatus.OK)
    made.cache.depart("r")
    made.cache._demotion.make_room(20)
    return n


def test_a_record_that_fails_twice_while_others_are_read_is_forgotten_and_removed() -> None:
    made = started(THROUGH._replace(capacity=40, found=tuple(("a", i) for i in range(8))))
    assert [read_all(made, A, [A[2]]) for _ in range(4)] == [8, 8, 2, 2]
    assert [op.key for op in sent(made, OpKind.REMOVE)] == [A[2]]
    made.ranks.settle()
    stored(made, A)
    made.ranks.settle()
    made.cache._demotion.make_room(20)
    assert read_all(made, A, []) == 8, "computed, written and read again"
    assert tier_of(made).trips == 0
    made.verify()


def test_records_that_fail_together_are_kept() -> None:
    made = started(THROUGH._replace(capacity=40, found=tuple(("a", i) for i in range(8))))
    for _ in range(3):
        assert read_all(made, A, A) == 8
        assert tier_of(made).breaker is BreakerState.RESTING
        made.clock.now += 100
        made.step()
    assert read_all(made, A, []) == 8
    assert not sent(made, OpKind.REMOVE)


def removals(made: Engine, seconds: int, refused: Container[bytes]) -> int:
    """Let time pass in steps of a second, with some removals in vain; return how many removals were ordered."""
    before = len(sent(made, OpKind.REMOVE))
    for _ in range(seconds):
        made.clock.now += 1
        made.ranks.drain()
        for number, op in list(made.ranks.pending.items()):
            vain = op.kind is OpKind.REMOVE and op.key in refused
            made.ranks.answer(number, 0, OpStatus.ERROR if vain else OpStatus.OK)
        made.verify()
    return len(sent(made, OpKind.REMOVE)) - before


def test_a_record_that_cannot_be_removed_rests_nothing_and_is_tried_ever_less() -> None:
    made = started(THROUGH._replace(capacity=40, found=tuple(("a", i) for i in range(8))))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.CORRUPT)
    assert removals(made, 600, A) == 14  # after 1, 3, 7, ... 63 seconds, then once a minute
    assert tier_of(made).trips == 0
    assert tier_of(made).used == 8 * RECORD
    stored(made, B[:1])
    made.ranks.settle()
    assert below(made, B[:1]) == [True]
    assert removals(made, 61, ()) == 1
    assert tier_of(made).used == 8 * RECORD


def test_room_is_not_made_at_the_cost_of_what_cannot_be_removed() -> None:
    """On a medium that removes nothing the tier forgets a few records, not all."""
    found = tuple((name, i) for name in "abc" for i in range(8))
    made = started(THROUGH._replace(capacity=24, found=found))
    keys = chain("a", 8) + chain("b", 8) + chain("c", 8)
    for i in range(20):
        stored(made, chain(f"new{i}", 1))
        removals(made, 5, keys)
    assert sum(below(made, keys)) >= 12
    assert tier_of(made).trips == 0
    removals(made, 120, ())
    stored(made, chain("last", 1))
    made.ranks.settle()
    assert below(made, chain("last", 1)) == [True]


def test_no_policy_is_ever_asked_for_fewer_than_no_victims() -> None:
    """A round of what would not go comes on top of the removals that may be under way."""
    clock = Clock()
    removals = Removals(clock)
    removals.doom(A[0], RECORD)
    removals.end(*removals.take(), ok=False)
    clock.now += 60
    for key in chain("c", 200):
        removals.doom(key, RECORD)
    assert len(removals.take()) > 100
    assert removals.left == 0
