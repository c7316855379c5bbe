"""Hits that are given while their last chunks are read: first tokens come sooner, and nothing is held for longer."""

import pytest

from kvtier.brain import ReadPlan, overlap
from kvtier.types import BlockKey, OpKind, OpStatus, WriteMode
from tests.brain import drive
from tests.brain.drive import Prompt, Rig
from tests.brain.fake_engine import Engine, Shape, arrive, here, put, sent, started
from tests.brain.fake_ranks import chain

A = chain("a", 8)
SHAPE = Shape(modes=(WriteMode.IDLE,), watermark=0.0, capacity=80, slots=16, overlap=True)
CHUNKS, NBYTES = 1024, 8 << 20  # 64k tokens of an 8B model
KEYS = chain("long", CHUNKS)
COPY_S = CHUNKS * NBYTES / drive.LINK


@pytest.fixture(autouse=True)
def copies_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loads take as long as these copies seem to."""
    monkeypatch.setattr(overlap, "_MOST_S", 60.0)


def copied(gb: float, *, overlap: bool = True, others: int = 0) -> tuple[Rig, Prompt]:
    """Ask for a prefix on a drive that reads so many GB/s; it may have been asked for others before."""
    prefixes = [chain(f"other{i}", 64) for i in range(others)]
    rig = Rig(
        slots=4 * CHUNKS,
        nbytes_per_s=gb * 1e9,
        chunk_tokens=64,
        chunk_nbytes=NBYTES,
        prefixes=[KEYS, *prefixes],
        overlap=overlap,
    )
    for i, keys in enumerate(prefixes):
        rig.arrive(f"other{i}", keys)
        rig.run()
    return rig, rig.arrive("r", KEYS)


def run(rig: Rig, prompt: Prompt) -> float:
    """Run until all that comes is on the device; return for how long blocks were held."""
    rig.run(lambda: prompt.copied_s is not None)
    assert prompt.copied_s is not None
    return prompt.copied_s - prompt.wait_s


@pytest.mark.parametrize(
    ("gb", "ratio"), [(1, 0.99), (3.5, 0.93), (7, 0.86), (14, 0.75), (25, 0.65), (50, 0.8)]
)
def test_a_hit_is_on_the_device_sooner_and_holds_its_blocks_no_longer(
    gb: float, ratio: float
) -> None:
    before, after = copied(gb, overlap=False), copied(gb)
    held = [run(*before), run(*after)]
    assert after[1].copied_s is not None
    assert before[1].copied_s is not None
    assert after[1].copied_s / before[1].copied_s <= ratio
    assert held[1] <= held[0] + drive.STEP_S
    assert after[1].hit == CHUNKS
    assert after[1].late == 0


def test_a_drive_that_stalls_after_the_hit_holds_blocks_for_two_copies_at_most() -> None:
    rig, prompt = copied(14)
    rig.run(lambda: prompt.hit is not None)
    rig.drive.stalled = True
    assert run(rig, prompt) <= 2 * COPY_S + 0.05 + 2 * drive.STEP_S
    assert 0 < prompt.late < CHUNKS // 2
    rig.drive.stalled = False
    rig.run(lambda: False, limit_s=1.0)
    assert rig.cache.stats().pinned == rig.cache.stats().quarantined_slots == 0
    again = rig.arrive("again", KEYS)
    rig.run()
    assert again.hit == CHUNKS, "what came too late is not lost"


def test_a_drive_that_was_fast_before_proves_nothing() -> None:
    rig, prompt = copied(25, others=4)
    rig.drive.nbytes_per_s = 0.5e9
    held = run(rig, prompt)
    assert held <= COPY_S + 4 * drive.STEP_S, "as if it had been slow all the time"
    assert prompt.late == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_drive_that_stalls_before_the_hit_gives_none(share: float) -> None:
    rig, prompt = copied(1)
    rig.run(lambda: rig.clock.now >= prompt.arrived + share * CHUNKS * NBYTES / 1e9)
    rig.drive.stalled = True
    rig.run(lambda: False, limit_s=1.5)
    assert prompt.hit is None
    rig.drive.stalled = False
    assert run(rig, prompt) <= COPY_S + 4 * drive.STEP_S


# by hand


def waiting(copy_s: float = 1.0) -> Engine:
    """Make an engine that reads A from below, for a request r; a copy of a chunk takes so long."""
    made = started(SHAPE)
    put(made, A)
    made.slow_copies(copy_s)
    arrive(made, "r", A)
    plan = made.cache.plan_read("r", A)
    assert plan is not None
    assert plan.reading == len(A)
    made.ranks.drain()
    return made


def reads(made: Engine) -> list[int]:
    return [op.op for op in made.ranks.pending.values() if op.kind is OpKind.READ]


def land(made: Engine, n: int, status: OpStatus = OpStatus.OK) -> None:
    """Let so many reads end."""
    for op in reads(made)[:n]:
        made.clock.now += 0.01
        for rank in sorted(made.ranks.left[op]):
            made.ranks.answer(op, rank, status)
    made.verify()


def hit(made: Engine) -> bool:
    return made.cache.ready("r") and made.cache.plan_read("r", A) is None


def given(n: int = 6) -> Engine:
    """Make an engine in which r has its hit, of which so many chunks have landed."""
    made = waiting()
    land(made, n)
    assert hit(made)
    plan = made.ranks.loaded(made.cache.plan_load("r", A), A)
    assert len(plan.reads) == len(A) - n
    assert plan.patience_s == pytest.approx(2 * len(A) + 0.05)
    made.verify()
    return made


def finish(made: Engine) -> None:
    (plan,) = made.ranks.copies
    made.ranks.finish(plan)
    made.verify()


def test_nothing_is_given_before_a_part_has_landed() -> None:
    made = waiting()
    land(made, 1)
    assert not hit(made)
    land(made, 1)
    assert hit(made)


def test_nothing_is_given_where_copies_are_as_quick_as_ever() -> None:
    made = waiting(copy_s=1e-6)
    land(made, 7)
    assert not hit(made)


def test_what_lands_behind_the_hit_is_pinned_until_it_is_copied() -> None:
    made = given()
    land(made, 1)
    assert made.cache.stats().pinned == 7
    land(made, 1)
    finish(made)
    assert here(made, A) == [True] * 8
    assert made.cache.stats().pinned == 0
    assert made.cache.stats().tiers[1].hits == 8
    assert made.cache.stats().tiers[0].hits == 0
    assert made.cache.stats().load_refusals == {}


@pytest.mark.parametrize("status", [OpStatus.ERROR, OpStatus.CORRUPT, OpStatus.DIED])
def test_a_read_that_fails_behind_the_hit_is_no_chunk_and_the_others_stay(status: OpStatus) -> None:
    made = given()
    land(made, 1, status)
    land(made, 1)
    finish(made)
    assert here(made, A).count(False) == 1
    assert made.cache.stats().quarantined_slots == 0


def test_a_chunk_that_comes_when_its_load_is_over_stays() -> None:
    made = given()
    late = [op.key for op in made.ranks.pending.values() if op.kind is OpKind.READ]
    finish(made)
    cancels = [op.target for op in sent(made, OpKind.CANCEL)]
    assert sorted(cancels) == sorted(reads(made)), "nobody waits for them"
    land(made, 2)
    assert here(made, [BlockKey(key) for key in late]) == [True, True]


def test_a_request_that_leaves_or_a_reset_leaves_nothing_behind() -> None:
    for resets in (False, True):
        made = given()
        if resets:
            made.ranks.reset()
        else:
            made.cache.depart("r")
        made.verify()
        land(made, 2)
        finish(made)
        made.ranks.settle()
        assert made.cache.stats().pinned == made.cache.stats().quarantined_slots == 0


def test_a_hit_that_finds_no_blocks_waits_on_and_ends_as_ever() -> None:
    made = waiting(copy_s=0.2)
    land(made, 4)
    assert hit(made)
    made.clock.now += 0.1
    assert hit(made), "asked again in the next step"
    made.clock.now += 1.0
    assert made.cache.plan_read("r", A) == ReadPlan(4), "it stalls"
    assert not made.cache.ready("r")
    land(made, 4)
    assert hit(made)
    plan = made.ranks.loaded(made.cache.plan_load("r", A), A)
    assert not plan.reads
    finish(made)


def test_a_request_that_gives_up_before_its_load_began_is_silent_about_it() -> None:
    made = waiting()
    land(made, 4)
    assert hit(made)
    made.cache.cancel("r")
    made.verify()
    assert made.cache.stats().pinned == 0
    assert len(sent(made, OpKind.CANCEL)) == 4


def test_with_several_groups_nothing_is_given_early() -> None:
    made = started(SHAPE._replace(hybrid=True))
    assert not made.cache._overlap._enabled


def test_what_waits_for_another_wave_is_not_given() -> None:
    made = waiting()
    request = made.cache._requests["r"]
    land(made, 4)
    assert request.reading is not None
    request.reading.more = True  # type: ignore[union-attr]
    assert not hit(made)
