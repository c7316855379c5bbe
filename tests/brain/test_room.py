"""A medium without room for what is configured: the tier shrinks to what there is, and grows again."""

import random

import pytest

from kvtier.brain.breaker import BreakerState
from kvtier.types import OpKind, OpResult, OpStatus, WriteMode
from tests.brain.fake_engine import (
    Engine,
    Shape,
    arrive,
    below,
    here,
    rest,
    sent,
    started,
    stored,
    tier_of,
)
from tests.brain.fake_ranks import RECORD, chain
from tests.brain.test_machine import random_calls, random_shape

THROUGH = Shape(slots=24, capacity=200, modes=(WriteMode.THROUGH,), watermark=0.0)
MEDIUM = 64  # records


def small(medium: int = MEDIUM, shape: Shape = THROUGH) -> Engine:
    """Configure 200 records on a medium of fewer."""
    made = started(shape)
    made.ranks.medium = medium * RECORD
    return made


def serve(made: Engine, prompts: range, seconds: float = 1.0) -> None:
    """Let prompts of four chunks come one after the other."""
    for i in prompts:
        stored(made, chain(f"p{i}", 4))
        for _ in range(4):
            made.step()
        made.clock.now += seconds
    made.verify()


def on_medium(made: Engine) -> int:
    return made.ranks.occupied(0) // RECORD


def writes(made: Engine) -> int:
    return len(sent(made, OpKind.WRITE))


def test_a_tier_on_a_smaller_medium_takes_that_for_its_capacity_and_serves_on() -> None:
    made = small()
    serve(made, range(120), seconds=10.0)
    tier = tier_of(made)
    assert tier.failures.keys() == {OpStatus.NO_ROOM}
    assert tier.failures[OpStatus.NO_ROOM] < 10, "once, not at each write"
    assert (tier.trips, tier.breaker) == (0, BreakerState.CLOSED)
    assert MEDIUM // 2 < tier.capacity // RECORD < MEDIUM
    assert tier.capacity + tier.short == 200 * RECORD
    assert on_medium(made) > MEDIUM // 2
    assert all(below(made, chain("p119", 4))), "the latest are there, the oldest went"
    assert not any(below(made, chain("p0", 4)))


def test_it_grows_back_when_there_is_room_again() -> None:
    made = small()
    made.ranks.others = 24 * RECORD
    serve(made, range(20), seconds=10.0)
    assert tier_of(made).capacity < 40 * RECORD
    made.ranks.others = 0
    serve(made, range(20, 40), seconds=10.0)
    assert tier_of(made).capacity > 50 * RECORD
    made.ranks.medium = 1000 * RECORD
    serve(made, range(40, 44), seconds=10.0)
    assert tier_of(made).short == 0
    asked = len(sent(made, OpKind.ROOM))
    serve(made, range(44, 48), seconds=10.0)
    assert len(sent(made, OpKind.ROOM)) == asked, "a tier that has its capacity asks nothing"


def test_what_others_take_is_given_up_in_time() -> None:
    made = small()
    serve(made, range(24), seconds=10.0)
    before = tier_of(made).failures[OpStatus.NO_ROOM]
    for i in range(24, 64):
        made.ranks.others += RECORD // 2
        serve(made, range(i, i + 1), seconds=10.0)
    assert tier_of(made).failures[OpStatus.NO_ROOM] - before < 12, "of 160 writes"
    assert (tier_of(made).trips, on_medium(made)) < (1, MEDIUM - 20)
    assert all(below(made, chain("p63", 4)))


def test_where_removals_do_not_help_most_stays_and_is_read() -> None:
    made = small()
    serve(made, range(14), seconds=10.0)
    made.ranks.snapshot = True
    serve(made, range(14, 140), seconds=10.0)
    assert on_medium(made) > MEDIUM * 2 // 3, "a few went before that was known"
    assert tier_of(made).breaker is BreakerState.CLOSED
    assert made.cache.lookup("new", next(made.cache.view.keys(1)))
    attempts = writes(made)
    serve(made, range(140, 152), seconds=10.0)
    assert writes(made) - attempts == 0, "the medium says that it has no room"
    made.ranks.kept = 0
    made.ranks.snapshot = False
    serve(made, range(152, 166), seconds=10.0)
    assert all(below(made, chain("p165", 4)))


def test_an_engine_that_starts_on_a_full_medium_writes_nothing() -> None:
    made = small()
    made.ranks.others = (MEDIUM - 6) * RECORD
    serve(made, range(60))
    assert tier_of(made).evictions == 0
    assert tier_of(made).writes <= 6
    assert writes(made) < 20
    assert not made.cache.awake()
    made.ranks.others = 0
    made.clock.now += 61
    serve(made, range(60, 64), seconds=10.0)
    assert all(below(made, chain("p63", 4)))


def test_a_tier_that_only_churns_stops_for_a_minute() -> None:
    made = small(24)
    serve(made, range(40), seconds=0.1)
    attempts = writes(made)
    serve(made, range(40, 60), seconds=0.1)
    assert writes(made) == attempts
    made.clock.now += 61
    serve(made, range(60, 62), seconds=0.1)
    assert writes(made) > attempts


def test_a_quota_shrinks_to_what_is_held_and_grows_slowly() -> None:
    made = started(THROUGH)
    serve(made, range(16), seconds=10.0)
    stored(made, chain("q", 1))
    (write,) = sent(made, OpKind.WRITE)[-1:]
    made.ranks.pending.pop(write.op)
    made.cache.complete([OpResult(0, write.op, OpStatus.NO_ROOM)])
    assert tier_of(made).capacity == 64 * RECORD
    for _ in range(12):
        made.clock.now += 10
        made.step()
    assert not sent(made, OpKind.ROOM)
    assert 64 * RECORD < tier_of(made).capacity <= 69 * RECORD


def test_a_medium_that_says_it_has_room_and_takes_nothing_is_believed_to_be_full() -> None:
    made = started(THROUGH)
    serve(made, range(16), seconds=10.0)
    made.ranks.free = 1 << 40
    for i in range(60):
        stored(made, chain(f"thin{i}", 4))
        made.ranks.drain()
        made.ranks.answer_all(OpStatus.NO_ROOM, kinds=[OpKind.WRITE])
        made.step()
        made.clock.now += 10
    made.verify()
    assert on_medium(made) > 48
    assert tier_of(made).breaker is BreakerState.CLOSED


def test_writes_that_fail_together_count_once() -> None:
    made = small()
    serve(made, range(15), seconds=10.0)
    made.ranks.others = 4 * RECORD
    arrive(made, "r", chain("r", 3))
    plan = made.cache.plan_store("r", chain("r", 3))
    made.ranks.finish(made.ranks.stored(plan).plan_id)
    made.ranks.drain()
    assert len(made.ranks.pending) == 3
    made.ranks.answer_all()
    capacity = tier_of(made).capacity
    made.step()
    assert tier_of(made).capacity == capacity > 50 * RECORD


def test_a_full_medium_does_not_keep_chunks_from_leaving_dram() -> None:
    made = small(20, THROUGH._replace(slots=4))
    made.ranks.others = 20 * RECORD
    serve(made, range(6))
    assert all(here(made, chain("p5", 4)))
    assert made.cache.room()


def test_records_that_were_removed_with_their_directory_count_no_more() -> None:
    made = started(THROUGH._replace(ranks=2))
    for i in range(6):
        stored(made, chain(f"p{i}", 4))
        for _ in range(4):
            made.step()
    assert tier_of(made).chunks == 24
    made.ranks.ranks[0].records[1].clear()
    made.ranks.lost |= {(0, 1, bytes(key)) for key in made.cache.view.keys(1)}
    rest(made.cache)
    made.clock.now += 1.1
    made.ranks.drain()
    (probe,) = made.ranks.pending
    made.ranks.answer(probe, 0, OpStatus.MISSING)
    made.ranks.answer(probe, 1)
    for _ in range(4):
        made.step()
        made.verify()
    assert (tier_of(made).chunks, tier_of(made).used) == (0, 0)
    made.ranks.check_known()
    assert tier_of(made).breaker is BreakerState.CLOSED


@pytest.mark.parametrize("seed", range(40))
def test_any_walk_on_a_small_medium_ends_well(seed: int) -> None:
    """No fault but room: others fill the medium and leave it, snapshots keep what is removed."""
    rng = random.Random(seed)
    shape = random_shape(rng)._replace(
        capacity=40, modes=(WriteMode.THROUGH,), asked=False, found=()
    )
    made = Engine(shape)
    made.ranks.medium = rng.choice([12, 24, 36]) * RECORD
    calls = [
        *random_calls(made, rng),
        (4, lambda: setattr(made.ranks, "others", rng.randrange(30) * RECORD)),
        (1, lambda: setattr(made.ranks, "snapshot", rng.random() < 0.3)),
        (1, lambda: setattr(made.ranks, "kept", 0)),
    ]
    weights = [weight for weight, _ in calls]
    for _ in range(300):
        _, call = rng.choices(calls, weights)[0]
        call()
        made.verify()
    made.ranks.others = made.ranks.kept = 0
    made.ranks.snapshot = False
    made.end()
