"""Reads from below: planned once per request, bounded in time, slots and worth."""

from kvtier.brain import ReadPlan, Why
from kvtier.types import NO_SLOT, BlockKey, Medium, OpKind, OpStatus, Priority, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, here, sent, started, store
from tests.brain.fake_ranks import CHUNK, RECORD, chain

A, B = chain("a", 8), chain("b", 8)
BELOW = Shape(
    modes=(WriteMode.IDLE,), watermark=0.0, capacity=20, found=tuple(("a", i) for i in range(8))
)


def below(slots: int = 16, ranks: int = 1, medium: Medium | None = None) -> Engine:
    """Make an engine whose lower tier holds prefix A, on every rank."""
    made = Engine(BELOW._replace(slots=slots, ranks=ranks, medium=medium))
    for rank in made.ranks.ranks[1:]:
        rank.records[1] = dict(made.ranks.ranks[0].records[1])
    made.step()
    made.list_all()
    made.step()
    made.ranks.sent.clear()
    return made


def hit(made: Engine, name: str) -> int:
    n = 0
    while n < len(A) and made.cache.lookup(name, A[n]):
        n += 1
    return n


def test_a_hit_in_tier_0_is_pinned_and_asking_again_changes_nothing() -> None:
    made = started(BELOW._replace(modes=()))
    arrive(made, "r", A)
    store(made, "r", A[:4])
    for _ in range(3):
        assert made.cache.plan_read("r", A[:4]) is None
        assert made.cache.view.pins == dict.fromkeys(A[:4], 1)
    assert made.cache.plan_read("r", A[:2]) is None
    assert made.cache.view.pins == dict.fromkeys(A[:2], 1)
    made.cache.depart("r")
    assert not made.cache.view.pins


def test_lookups_see_every_tier_until_the_request_is_settled() -> None:
    made = below()
    arrive(made, "r", A)
    assert hit(made, "r") == 8
    made.cache.plan_read("r", A)
    made.clock.now += 10
    assert made.cache.ready("r")
    assert hit(made, "r") == 0
    assert hit(made, "other") == 8


def test_the_reads_of_a_request_are_ordered_at_once_in_prefix_order() -> None:
    made = below()
    arrive(made, "r", A)
    plan = made.cache.plan_read("r", A)
    assert plan == ReadPlan(8, tuple(A))
    reads = sent(made, OpKind.READ)
    assert [op.key for op in reads] == A
    assert [op.end_token for op in reads] == [16 * (i + 1) for i in range(8)]
    assert [op.parent for op in reads] == [b"", *A[:-1]]
    assert {op.priority for op in reads} == {Priority.DEMAND}
    assert {op.deadline_s for op in reads} == {2.0}


def test_the_hit_is_given_when_all_is_in_and_stays_pinned() -> None:
    made = below()
    arrive(made, "r", A)
    made.cache.plan_read("r", A)
    made.ranks.drain()
    assert not made.cache.ready("r")
    assert made.cache.plan_read("r", A) == ReadPlan(8)
    made.ranks.answer_all()
    assert made.cache.ready("r")
    assert made.cache.view.pins == dict.fromkeys(A, 1)
    assert hit(made, "r") == 8
    assert made.cache.plan_read("r", A) is None
    plan = made.ranks.loaded(made.cache.plan_load("r", A), A)
    assert NO_SLOT not in plan.slots
    made.cache.depart("r")
    assert made.cache.view.pins == dict.fromkeys(A, 1), "the plan's own"
    made.ranks.finish(plan.plan_id)
    assert not made.cache.view.pins


def test_a_read_is_only_good_if_it_is_on_every_rank() -> None:
    made = below(ranks=2)
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    (read,) = sent(made, OpKind.READ)
    made.ranks.answer(read.op, 1, OpStatus.OK)
    assert not made.cache.ready("r")
    made.ranks.answer(read.op, 0, OpStatus.ERROR)
    assert made.cache.ready("r")
    assert here(made, A[:1]) == [False]
    assert made.cache.stats().free_slots == 16


def test_a_request_that_gets_no_read_is_settled_at_once() -> None:
    made = below(slots=2)
    arrive(made, "b", B)
    store(made, "b", B[:2])
    assert made.cache.plan_read("b", B[:2]) is None
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A) == ReadPlan(0)
    assert made.cache.ready("r")
    assert hit(made, "r") == 0


def test_past_its_deadline_a_request_goes_on_and_its_reads_are_cancelled() -> None:
    made = below()
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    made.ranks.drain()
    first, second = made.ranks.pending
    made.ranks.answer(first, 0)
    made.clock.now += 1.9
    assert not made.cache.ready("r")
    made.clock.now += 0.2
    assert made.cache.ready("r")
    assert hit(made, "r") == 1
    assert [op.target for op in sent(made, OpKind.CANCEL)] == [second]
    assert made.cache.stats().load_refusals == {Why.LATE: 1}
    made.ranks.answer(second, 0, OpStatus.CANCELLED)
    assert made.cache.stats().free_slots == 15
    made.verify()


def test_a_late_read_that_came_through_is_used_by_the_next() -> None:
    made = below()
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.cache.cancel("r")
    made.step()
    assert here(made, A[:1]) == [True]
    assert not made.cache.view.pins


def test_a_slot_under_a_read_is_not_reused_before_every_rank_answered() -> None:
    made = below(slots=2, ranks=2)
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    (read,) = made.ranks.pending
    made.cache.depart("r")
    arrive(made, "b", B)
    assert made.cache.plan_store("b", B[:2]).no_room == (B[1],)
    made.ranks.answer(read, 0, OpStatus.CANCELLED)
    assert made.cache.plan_store("b", B[:2]).no_room == (B[1],)
    made.ranks.answer(read, 1, OpStatus.DIED)
    assert made.cache.plan_store("b", B[:2]).keys == (B[1],)


def test_reads_that_others_wait_for_are_not_cancelled() -> None:
    made = below()
    for name in ("r", "s"):
        arrive(made, name, A)
        made.cache.plan_read(name, A[:2])
    assert len(sent(made, OpKind.READ)) == 2
    made.cache.depart("r")
    assert not sent(made, OpKind.CANCEL)
    made.ranks.answer_all()
    assert made.cache.ready("s")
    assert made.cache.view.pins == dict.fromkeys(A[:2], 1)


def test_a_corrupt_or_missing_record_is_a_miss_and_removed_everywhere() -> None:
    for status in (OpStatus.CORRUPT, OpStatus.MISSING):
        made = below(ranks=2)
        arrive(made, "r", A)
        made.cache.plan_read("r", A)
        made.ranks.drain()
        bad = next(op for op, o in made.ranks.pending.items() if o.key == A[2])
        made.ranks.answer(bad, 1, status)
        made.ranks.answer_all()
        assert hit(made, "r") == 2
        assert [op.key for op in sent(made, OpKind.REMOVE)] == [A[2]]
        assert not made.cache.lookup("new", A[2])
        used = made.cache.stats().tiers[1].used
        made.ranks.answer_all()
        assert made.cache.stats().tiers[1].used == used - 2 * RECORD  # of two ranks
        assert made.cache.stats().tiers[1].failures == {status: 1}
        made.verify()


def test_a_failed_read_leaves_the_record_where_it_is() -> None:
    made = below()
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:1])
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR)
    assert hit(made, "r") == 0
    assert made.cache.lookup("new", A[0])
    assert not sent(made, OpKind.REMOVE)


def test_reading_that_costs_more_than_computing_is_refused_until_the_request_departs() -> None:
    made = below()
    made.cache.prefilled(16_000, 1.0)  # a chunk of 16 tokens: 1 ms
    arrive(made, "slow", A)
    made.cache.plan_read("slow", A[:4])
    made.ranks.drain()
    made.clock.now += 1.0
    made.ranks.answer_all()
    made.cache.depart("slow")
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A) == ReadPlan(0)
    assert hit(made, "r") == 4, "what is in tier 0 is not refused"
    assert made.cache.stats().load_refusals == {Why.TOO_DEAR: 1}
    made.cache.preempted("r")
    assert hit(made, "r") == 4
    made.cache.depart("r")
    made.clock.now += 600
    arrive(made, "s", A)
    assert made.cache.plan_read("s", A) == ReadPlan(4, tuple(A[4:])), "tried again"


def test_a_tier_that_was_measured_before_is_weighed_from_the_first_request_on() -> None:
    """Eight chunks take 8 ms to compute."""
    slow, fast = Medium(read=8 * CHUNK / 0.02), Medium(read=8 * CHUNK / 0.002)
    for medium, reads in ((slow, 0), (fast, 8), (Medium(5 << 30, latency_s=0.02), 0)):
        made = below(medium=medium)
        made.cache.prefilled(16_000, 1.0)
        made.clock.now += 3600  # nobody asked meanwhile: it is as good as new
        arrive(made, "r", A)
        assert made.cache.plan_read("r", A) == ReadPlan(reads, tuple(A[:reads]))
        assert made.cache.stats().load_refusals[Why.TOO_DEAR] == (not reads)


def test_what_was_measured_before_is_doubted_with_time_and_gives_way_to_what_is_seen() -> None:
    made = below(medium=Medium(read=8 * CHUNK / 1.0))
    made.cache.prefilled(1_600, 1.0)  # a chunk: 10 ms, and as long to read one
    arrive(made, "first", A)
    assert made.cache.plan_read("first", A) == ReadPlan(0)
    made.clock.now += 600
    arrive(made, "second", A)
    assert made.cache.plan_read("second", A[:4]) == ReadPlan(4, tuple(A[:4])), "tried again"
    made.ranks.drain()
    made.ranks.answer_all()
    arrive(made, "third", A)
    assert made.cache.plan_read("third", A) == ReadPlan(4, tuple(A[4:])), "it is fast after all"


def test_a_slow_copy_to_the_device_counts_too() -> None:
    made = below()
    made.cache.prefilled(16_000, 1.0)
    made.cache.transferred(CHUNK, 0.002)
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A) == ReadPlan(0)


def test_a_preempted_request_may_read_again() -> None:
    made = below()
    arrive(made, "r", A)
    made.cache.plan_read("r", A)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR)
    assert hit(made, "r") == 0
    made.cache.preempted("r")
    assert not made.cache.view.serving(1)
    made.clock.now += 5
    made.step()
    assert hit(made, "r") == 8


def test_a_chunk_that_vanished_has_no_slot() -> None:
    made = below()
    arrive(made, "r", A)
    store(made, "r", A[:1])
    plan = made.ranks.loaded(made.cache.plan_load("r", A[:3]), A[:3])
    assert plan.slots[1:] == (NO_SLOT, NO_SLOT)
    assert made.cache.stats().load_refusals == {Why.VANISHED: 1}


def test_a_chunk_that_failed_to_load_is_a_miss_before_anybody_asks_again() -> None:
    made = below()
    arrive(made, "r", A)
    store(made, "r", A[:2])
    arrive(made, "s", A)
    for name in ("r", "s"):
        assert made.cache.plan_read(name, A[:2]) is None
    plan = made.ranks.loaded(made.cache.plan_load("r", A[:2]), A[:2])
    made.ranks.finish(plan.plan_id, [A[1]])
    assert here(made, A[:2]) == [True, False]
    assert made.cache.view.pins == {A[0]: 1}
    assert made.cache.plan_load("s", A[:2]).slots[1] == NO_SLOT
    made.verify()


def test_unknown_requests_read_nothing() -> None:
    made = below()
    assert made.cache.plan_read("nobody", A) == ReadPlan(0)
    assert made.cache.ready("nobody")
    made.cache.cancel("nobody")
    made.cache.depart("nobody")
    made.cache.preempted("nobody")
    assert not sent(made, OpKind.READ)


class Load:
    """A load that copies chunks as they come."""

    def __init__(self) -> None:
        self.told: list[tuple[BlockKey, bool]] = []

    def landed(self, key: BlockKey, *, ok: bool) -> None:
        self.told.append((key, ok))


def test_a_load_may_wait_for_reads_beside_a_request_and_is_told_of_each() -> None:
    made, load = below(), Load()
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    for key in A[:3]:
        assert not isinstance(made.cache._promotion.wait_for(key, load), Why)
    made.cache.check()
    made.cache.cancel("r")
    assert not sent(made, OpKind.CANCEL), "the load still waits"
    first, *others = made.ranks.pending
    made.ranks.answer(first, 0, OpStatus.ERROR)
    for op in others:
        made.ranks.answer(op, 0)
    assert load.told == [(A[0], False), (A[1], True), (A[2], True)]
    assert made.cache._promotion.wait_for(A[1], load) is Why.BUSY, "it is there"
    made.verify()


def test_a_key_that_is_asked_for_twice_is_read_once() -> None:
    made = below()
    arrive(made, "r", A)
    assert made.cache.plan_read("r", [A[0], A[0]]) == ReadPlan(1, (A[0],))
    made.ranks.settle()
    assert made.cache.plan_read("r", [A[0], A[0]]) is None
    made.verify()
