"""A tier below: how it starts, what it finds, how it is reset."""

import pytest

from kvtier.brain import upkeep
from kvtier.brain.breaker import BreakerState
from kvtier.brain.scan import Scan
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.types import BlockKey, OpKind, OpStatus, ScanBatch, WriteMode
from tests.brain.fake_engine import (
    Engine,
    Shape,
    arrive,
    below,
    rest,
    sent,
    started,
    stored,
    tier_of,
)
from tests.brain.fake_ranks import RECORD, Content, chain

A, B = chain("a", 8), chain("b", 8)
THROUGH = Shape(slots=16, capacity=4, modes=(WriteMode.THROUGH,), watermark=0.0)


def test_every_lower_tier_is_opened_with_the_manifest() -> None:
    made = Engine(THROUGH._replace(modes=(WriteMode.IDLE, WriteMode.THROUGH)))
    opens = made.ranks.drain()
    assert [(op.kind, op.tier, op.text) for op in opens] == [
        (OpKind.OPEN, 1, "manifest"),
        (OpKind.OPEN, 2, "manifest"),
    ]
    assert made.cache.awake()


def test_nothing_is_written_before_the_tier_is_open_and_all_that_it_holds_is_known() -> None:
    made = Engine(THROUGH._replace(found=tuple(("a", i) for i in range(4))))
    stored(made, B[:1])
    made.ranks.drain()
    assert not sent(made, OpKind.WRITE)
    made.ranks.answer_all()
    assert not sent(made, OpKind.WRITE), "it may be full already"
    made.scan(0, 3)
    assert not sent(made, OpKind.WRITE)
    made.list_all()
    for _ in range(3):
        made.step()
        made.verify()
        assert tier_of(made).used <= 4 * RECORD
    assert below(made, B[:1]) == [True]


def test_a_list_of_an_open_that_failed_is_forgotten() -> None:
    made = scanning(ranks=1)
    put(made, 0, A[:3])
    made.cache._upkeeps[0]._begin(OpKind.OPEN, "manifest")
    first = made.ranks.openings[1]
    made.cache.scanned(batch(0, [*A[:2], *B[:2]], first))
    made.step()
    made.cache.scanned(batch(0, B[:2], first))
    listed(made, 0, A[:3])
    made.step()
    assert [*below(made, A[:3]), *below(made, B[:2])] == [True] * 3 + [False] * 2
    assert tier_of(made).used == 3 * RECORD
    made.verify()


def test_a_list_that_does_not_move_is_asked_for_again_later_and_later() -> None:
    made = scanning(ranks=1)
    opens = len(sent(made, OpKind.OPEN))
    for seconds in (10, 20, 40):
        made.clock.now += seconds - 0.1
        assert len(sent(made, OpKind.OPEN)) == opens
        made.clock.now += 0.2
        opens += 1
        assert len(sent(made, OpKind.OPEN)) == opens
        made.step()
    listed(made, 0, A[:1])
    made.step()
    made.clock.now += 1000
    assert len(sent(made, OpKind.OPEN)) == opens


def test_a_start_that_failed_is_tried_again() -> None:
    made = Engine(THROUGH)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR)
    made.ranks.drain()
    assert not made.ranks.pending
    made.clock.now += 1.1
    assert len(sent(made, OpKind.OPEN)) == 2


def scanning(ranks: int = 2) -> Engine:
    made = Engine(THROUGH._replace(ranks=ranks, capacity=20))
    made.step()
    return made


def listed(
    made: Engine, rank: int, keys: list[BlockKey], *, done: bool = True, at: float = 0.0
) -> None:
    """Let a rank list so much for the OPEN that was ordered last."""
    made.cache.scanned(batch(rank, keys, made.ranks.openings[1], done=done, at=at))


def batch(
    rank: int, keys: list[BlockKey], opening: int, *, done: bool = True, at: float = 0.0
) -> ScanBatch:
    mtimes = [at + 100.0 * i for i in range(len(keys))]
    return ScanBatch(rank, 1, opening, list(keys), [RECORD] * len(keys), mtimes, done)


def put(made: Engine, rank: int, keys: list[BlockKey]) -> None:
    made.ranks.ranks[rank].records[1].update({key: Content(key, 0) for key in keys})


def test_a_record_is_present_when_every_rank_listed_it_and_finished() -> None:
    made = scanning()
    put(made, 0, A[:3])
    put(made, 1, A[:2])
    listed(made, 0, A[:3])
    listed(made, 1, A[:2], done=False)
    made.ranks.drain()
    assert below(made, A[:3]) == [False] * 3
    listed(made, 1, [])
    made.ranks.drain()
    assert below(made, A[:3]) == [True, True, False]


def test_a_record_that_some_ranks_lack_is_removed() -> None:
    made = scanning()
    put(made, 0, A[:3])
    listed(made, 0, A[:3])
    listed(made, 1, [])
    made.ranks.drain()
    assert tier_of(made).used == 2 * 3 * RECORD
    made.step()
    made.step()
    assert tier_of(made).used == 0
    assert made.ranks.ranks[0].records[1] == {}


def test_what_changed_meanwhile_wins_over_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_SCAN_SLICE", 1)
    made = scanning(ranks=1)
    listed(made, 0, [*B[:2], A[0]])
    made.ranks.drain()
    stored(made, A[:1])
    made.step()
    assert below(made, A[:1]) == [True]
    space = made.cache._state.lowers[0].space
    assert space
    space.doom(A[0], made.cache._residency.erase(1, A[0]))
    for _ in range(4):
        made.step()
        made.cache.check()
    assert below(made, A[:1]) == [False]
    assert tier_of(made).used == 2 * RECORD


def test_scanned_records_are_as_old_as_their_files() -> None:
    made = scanning(ranks=1)
    listed(made, 0, [*A[:3]], done=False, at=1e6)
    listed(made, 0, [*B[:3]], done=True, at=1e3)
    made.ranks.drain()
    policy = made.cache.view.policy(1)
    assert policy.victims(9, lambda key: False) == [*B[:3], *A[:3]]


def test_a_request_shows_the_parents_of_scanned_records() -> None:
    made = scanning(ranks=1)
    put(made, 0, A[:3])
    listed(made, 0, A[:3])
    made.ranks.drain()
    assert made.cache.view.unlinked == 3
    arrive(made, "r", A)
    assert made.cache.view.unlinked == 0
    policy = made.cache.view.policy(1)
    assert policy.victims(9, lambda key: False) == [A[2], A[1], A[0]]
    made.verify()


def test_a_record_that_is_found_after_its_request_has_a_place_when_it_comes_up() -> None:
    made = scanning(ranks=1)
    put(made, 0, A[:3])
    arrive(made, "r", A)
    listed(made, 0, A[:3])
    made.ranks.drain()
    made.cache.plan_read("r", A[:3])
    made.ranks.settle()
    assert [made.cache.view.parent(key) for key in A[:3]] == [None, A[0], A[1]]
    made.cache.depart("r")
    assert made.cache.view.policy(0).victims(9, lambda key: False) == [A[2], A[1], A[0]]
    made.verify()


def test_a_scan_keeps_the_engine_awake_while_it_moves() -> None:
    made = scanning(ranks=1)
    listed(made, 0, A[:3], done=False)
    assert made.cache.awake()
    made.clock.now += 1.1
    assert not made.cache.awake()
    listed(made, 0, [])
    assert made.cache.awake()
    made.ranks.drain()
    assert not made.cache.awake()


def test_a_scan_larger_than_the_capacity_is_cut_down_oldest_first() -> None:
    made = scanning(ranks=1)
    keys = [key for name in "abcd" for key in chain(name, 8)]
    put(made, 0, keys)
    listed(made, 0, keys)
    for _ in range(8):
        made.step()
        made.verify()
    assert tier_of(made).used <= 20 * RECORD
    assert below(made, keys[:2]) == [False, False]
    assert below(made, keys[-2:]) == [True, True]


def test_a_reset_forgets_every_chunk_and_orders_a_reset_of_every_tier() -> None:
    made = started(THROUGH._replace(found=tuple(("a", i) for i in range(4))))
    stored(made, B[:2])
    made.ranks.reset()
    resets = sent(made, OpKind.RESET)
    assert [(op.tier, op.text) for op in resets] == [(1, "epoch 1")]
    assert not any(made.cache.lookup("r", key) for key in [*A, *B])
    assert made.cache.stats().free_slots == 16
    assert tier_of(made).chunks == 0
    removed = {key for event in made.cache.events() if event.removed for key in event.keys}
    assert removed >= set(A[:4]) | set(B[:2])


def test_a_tier_is_used_again_when_reset_is_answered_and_old_operations_have_ended() -> None:
    made = started(THROUGH)
    stored(made, A[:1])
    made.ranks.drain()
    (write,) = made.ranks.pending
    made.ranks.reset()
    assert [op.target for op in sent(made, OpKind.CANCEL)] == [write]
    made.ranks.answer_all(kinds=(OpKind.RESET,))
    stored(made, B[:1])
    made.ranks.drain()
    assert len(sent(made, OpKind.WRITE)) == 1
    assert made.cache.stats().quarantined_slots == 1
    made.ranks.answer(write, 0)
    assert made.cache.stats().quarantined_slots == 0
    assert [op.key for op in sent(made, OpKind.WRITE)] == [A[0], B[0]]


def test_operations_that_were_not_sent_before_a_reset_never_are() -> None:
    made = started(THROUGH._replace(found=tuple(("a", i) for i in range(4))))
    arrive(made, "r", A)
    made.cache.plan_read("r", A[:2])
    made.ranks.reset()
    assert not sent(made, OpKind.READ)
    assert made.cache.stats().free_slots == 16
    assert made.cache.ready("r")


def test_batches_of_a_scan_that_a_reset_overtook_are_ignored() -> None:
    made = scanning(ranks=1)
    made.ranks.reset()
    listed(made, 0, A[:3])
    made.step()
    made.step()
    assert below(made, A[:3]) == [False] * 3
    assert tier_of(made).used == 0


def test_a_reset_before_the_start_is_made_up_for() -> None:
    made = Engine(THROUGH)
    fresh = type(made.cache)(
        groups=made.cache.view.groups,
        ranks=1,
        tier0=LruPolicy,
        lower=[made.cache.view.tier(1)],
    )
    fresh.reset("new")
    fresh.open(4, "old")
    assert [(op.kind, op.text) for op in fresh.drain()] == [
        (OpKind.OPEN, "old"),
        (OpKind.RESET, "new"),
    ]


def test_a_probe_that_a_reset_overtook_is_repeated() -> None:
    made = started(THROUGH)
    rest(made.cache)
    made.clock.now += 2
    assert len(sent(made, OpKind.PROBE)) == 1
    made.ranks.reset()
    made.step()
    assert len(sent(made, OpKind.PROBE)) == 2
    made.ranks.answer_all()
    assert tier_of(made).breaker is BreakerState.CLOSED


def test_a_rank_that_lists_twice_orphans_nothing() -> None:
    scan = Scan(7, 2)
    keys = [BlockKey(bytes([i]) * 32 + bytes(4)) for i in range(3)]
    scan.add(batch(0, keys, 7, done=False))
    scan.add(batch(1, keys[:2], 7))
    scan.add(batch(0, keys, 7))
    scan.work(100)
    assert scan.listed
    assert [key for key, _ in scan.orphans()] == [keys[2]]
    assert [key for key, _ in scan.take(9)] == keys[:2]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_list_that_began_twice_counts_once(ranks: int) -> None:
    made = scanning(ranks)
    for rank in range(ranks):
        put(made, rank, A[:5])
        listed(made, rank, A[:4], done=False)
        listed(made, rank, A[:5])
    made.step()
    assert tier_of(made).chunks == 5
    assert tier_of(made).used == ranks * 5 * RECORD
    made.verify()


def test_foreign_bytes_above_the_capacity_are_nobody_s_fault_after_a_reset() -> None:
    made = started(THROUGH)
    space = made.cache._state.lowers[0].space
    assert space
    space.found_foreign(space.room.capacity + RECORD)
    made.ranks.reset()
    made.verify()
