"""What the brain counts of waits, of bytes of several ranks, of records that nobody read, and of ages."""

from kvtier.brain.ages import Ages
from kvtier.brain.stats import values
from kvtier.types import BlockKey, OpKind, OpResult, OpStatus, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, sent, started, stored, tier_of
from tests.brain.fake_ranks import RECORD, Clock, chain

A = chain("a", 8)
BELOW = Shape(
    slots=16,
    capacity=20,
    modes=(WriteMode.THROUGH,),
    watermark=0.0,
    found=tuple(("a", i) for i in range(8)),
)


def reading(made: Engine, n: int) -> None:
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:n])
    made.ranks.drain()


def test_a_wait_is_counted_to_the_tier_whose_reads_it_was_for() -> None:
    made = started(BELOW)
    reading(made, 4)
    made.clock.now += 0.25
    made.ranks.answer_all()
    tier = tier_of(made)
    assert tier.wait[""] == [0.25]
    assert tier.spent == 0.25
    assert made.cache.stats().tiers[0].spent == 0


def test_a_wait_in_vain_is_spent_too() -> None:
    made = started(BELOW)
    reading(made, 2)
    made.clock.now += 3
    assert made.cache.ready("r")
    assert made.cache.ready("r")
    assert tier_of(made).wait[""] == [3]


def test_a_wait_over_several_waves_is_one() -> None:
    made = started(BELOW._replace(slots=8))
    arrive(made, "r", A)
    waves = 0
    while plan := made.cache.plan_read("r", A[:6]):
        made.ranks.drain()
        if not plan.reading:
            break
        waves += 1
        made.clock.now += 0.5
        made.ranks.answer_all()
    assert waves == 2
    assert tier_of(made).wait[""] == [1.0]


def test_copies_to_the_device_are_spent_in_the_first_tier() -> None:
    made = started(BELOW)
    stored(made, chain("b", 2))
    arrive(made, "r", chain("b", 2))
    assert made.cache.plan_read("r", chain("b", 2)) is None
    plan = made.ranks.loaded(made.cache.plan_load("r", chain("b", 2)), chain("b", 2))
    made.clock.now += 0.125
    made.ranks.finish(plan.plan_id)
    assert made.cache.stats().tiers[0].spent == 0.125


def test_bytes_are_those_of_all_ranks_and_seconds_of_the_slowest() -> None:
    made = started(BELOW._replace(ranks=2))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    (read,) = sent(made, OpKind.READ)
    for rank, seconds in enumerate((0.5, 0.25)):
        made.cache.complete(
            [OpResult(rank, read.op, OpStatus.OK, 1000, seconds, queued=seconds / 4, coded=0.125)]
        )
    tier = tier_of(made)
    assert (tier.reads, tier.read_bytes, tier.read_seconds) == (1, 2000, 0.5)
    assert tier.operations == {
        "read_queue": [0.125],
        "read_codec": [0.125],
        "read_medium": [0.375],
    }
    assert tier.capacity == 2 * 20 * RECORD
    assert tier.used == 2 * tier.chunks * RECORD


def test_what_is_evicted_unread_is_wasted() -> None:
    made = started(BELOW._replace(capacity=9))
    reading(made, 3)
    made.ranks.answer_all()
    for name in "bcde":
        stored(made, chain(name, 4))
        made.ranks.settle()
    tier = tier_of(made)
    assert tier.evictions > 8
    gone = set(A) - set(made.cache.view.keys(1))
    read = len(gone & set(A[:3]))
    assert tier.unread_bytes == (tier.evictions - read) * RECORD
    made.cache.check()


def test_vllm_s_own_names_are_told_of_lower_tiers_with_the_same_numbers() -> None:
    made = started(BELOW)
    reading(made, 3)
    told = {(each.name, *labels): value for each, labels, value in values(made.cache.stats())}
    assert told["vllm:kv_offload_tiering_active_promotion_jobs", "tier1"] == 3
    made.ranks.answer_all()
    told = {(each.name, *labels): value for each, labels, value in values(made.cache.stats())}
    ours = told["kvtier:tier_read_bytes", "tier1"]
    assert ours == 3 * RECORD
    assert told["vllm:kv_offload_tiering_read_bytes", "tier1"] == ours
    assert ("vllm:kv_offload_tiering_read_bytes", "dram") not in told


def sampled(n: int) -> list[BlockKey]:
    keys = (BlockKey(b"%036d" % i) for i in range(100_000))
    return [key for key in keys if hash(key) % 64 == 0][:n]


def test_ages_of_a_sample() -> None:
    clock = Clock()
    ages = Ages(2, clock)
    (key,) = sampled(1)
    ages.entered(0, [key])
    clock.now += 5
    ages.used([key])
    ages.entered(1, [key])
    clock.now += 2
    ages.used([key])
    assert ages.reuse == {"": [5, 2]}
    clock.now += 1
    ages.left(0, [key])
    assert (ages.age[0][""], ages.idle[0][""]) == ([8], [1])
    clock.now += 10
    ages.left(1, [key])
    assert (ages.age[1][""], ages.idle[1][""]) == ([13], [11])
    clock.now += 100
    ages.entered(0, [key])
    assert ages.regret == {"": [100]}


def test_ages_hold_few_of_those_that_are_gone_and_nothing_of_those_outside_the_sample() -> None:
    ages = Ages(1, Clock())
    keys = [BlockKey(b"%036d" % i) for i in range(400_000)]
    for start in range(0, len(keys), 1000):
        ages.entered(0, keys[start : start + 1000])
        ages.left(0, keys[start : start + 1000])
    assert len(ages._gone) == 4096
    assert not ages._lives
    assert len(ages.age[0][""]) == 4096, "nobody took them"
