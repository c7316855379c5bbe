"""Hits that do not fit at once: they come in waves, nobody waits for nobody, and a slow drive is not a silent one."""

import pytest

from kvtier.brain import ReadPlan, Why
from kvtier.brain.budgets import Budgets
from kvtier.brain.index import Index
from kvtier.brain.lower_tier import LowerTier
from kvtier.chunking import auto_chunk_tokens
from kvtier.types import BlockKey, OpKind, OpStatus, Priority, WriteMode
from tests.brain.drive import Rig, crowd, long_prefix, served
from tests.brain.fake_engine import Engine, Shape, arrive, put, sent, started, store, stored
from tests.brain.fake_ranks import chain

A, B = chain("a", 8), chain("b", 8)
EMPTY = Shape(modes=(WriteMode.IDLE,), watermark=0.0, capacity=80)
TOKENS = auto_chunk_tokens(16, 128 << 10).tokens  # an 8B model's


def below(slots: int, *prefixes: list[BlockKey]) -> Engine:
    """Make an engine whose lower tier holds these."""
    made = started(EMPTY._replace(slots=slots))
    for keys in prefixes:
        put(made, keys)
    return made


def ask(made: Engine, name: str, keys: list[BlockKey]) -> int | None:
    """Ask as the connector does; return the chunks of the hit, None while there is none yet."""
    if not made.cache.ready(name):
        return None
    for _ in range(2):
        n = next((i for i, key in enumerate(keys) if not made.cache.lookup(name, key)), len(keys))
        plan = made.cache.plan_read(name, keys[:n]) if n else None
        if plan is None:
            return n
        if plan.reading:
            return None
    raise AssertionError("a settled request was promised what cannot come")


def load(made: Engine, name: str, keys: list[BlockKey]) -> None:
    made.ranks.finish(made.ranks.loaded(made.cache.plan_load(name, keys), keys).plan_id)
    made.cache.depart(name)


# a real drive


@pytest.mark.parametrize("gb", [14, 7, 3.5])
def test_a_long_prefix_is_served_whole_from_any_drive_that_is_worth_it(gb: float) -> None:
    rig = long_prefix(gb * 1e9, TOKENS)
    rig.run()
    assert served(rig) == 1
    assert rig.prompts[0].wait_s == pytest.approx((16 << 30) / gb / 1e9, rel=0.02)
    assert rig.cache.stats().tiers[1].trips == 0
    assert 0.9 <= rig.learned / (gb * 1e9) <= 1.1


def test_a_drive_that_is_slower_than_to_compute_is_waited_for_as_long_as_that_takes_and_then_refused() -> (
    None
):
    rig = long_prefix(1.5e9, TOKENS)
    rig.run()
    assert rig.prompts[0].wait_s == pytest.approx(10.9, abs=0.1)
    assert served(rig) > 0.95
    assert rig.cache.stats().load_refusals == {Why.TOO_DEAR: 1}
    rig.run(lambda: False, limit_s=1.0)  # the copies end
    rig.cache._demotion.make_room(rig.slots)
    again = rig.arrive("again", rig.prompts[0].keys)
    rig.run()
    assert (again.hit, again.wait_s) == (0, 0)
    assert rig.cache.stats().tiers[1].trips == 0


@pytest.mark.parametrize("tokens", [16, 64])
def test_more_reads_than_may_be_under_way_come_in_waves(tokens: int) -> None:
    rig = long_prefix(14e9, tokens)
    rig.run()
    assert served(rig) == 1


@pytest.mark.parametrize("stall_at_s", [0.5, 1.5])
@pytest.mark.parametrize("gb", [7, 3.5, 1.5])
def test_a_drive_that_falls_silent_is_given_up_after_a_deadline_and_its_rate_was_learned(
    gb: float, stall_at_s: float
) -> None:
    rig = long_prefix(gb * 1e9, TOKENS)
    rig.run(lambda: rig.clock.now >= rig.prompts[0].arrived + stall_at_s)
    rig.drive.stalled = True
    rig.run()
    assert rig.prompts[0].wait_s == pytest.approx(stall_at_s + 2, abs=0.05)
    assert served(rig) == pytest.approx(gb * 1e9 * stall_at_s / (16 << 30), rel=0.1)
    assert rig.cache.stats().load_refusals == {Why.LATE: 1}
    assert 0.9 <= rig.learned / (gb * 1e9) <= 1.1
    rig.drive.stalled = False  # the answers of late reads teach nothing
    rig.run(lambda: False, limit_s=3.0)
    assert 0.9 <= rig.learned / (gb * 1e9) <= 1.1


def test_a_read_that_two_wait_for_is_learned_from_once() -> None:
    rig = long_prefix(7e9, TOKENS)
    rig.arrive("sharer", rig.prompts[0].keys)
    rig.run()
    assert served(rig) == 1
    assert 0.9 <= rig.learned / 7e9 <= 1.1


def test_an_answer_takes_some_steps_whatever_computing_would_take() -> None:
    """A chunk is computed in less than a step, and read in less; to hear of it takes two."""
    rig = Rig(
        slots=64,
        nbytes_per_s=7e9,
        chunk_tokens=64,
        chunk_nbytes=8 << 20,
        prefixes=[A],
        prefill_rate=12_000,
    )
    for i in range(3):
        rig.arrive(f"r{i}", A[: i + 1])
        rig.run()
    assert served(rig) == 1
    assert rig.cache.stats().load_refusals == {}


def test_short_hits_teach_no_rate_that_is_the_engines_own() -> None:
    """A drive of 14 GB/s reads 16 chunks in a step: of 40 the last eight leave it half a step of rest."""
    hits = [chain(f"short{i}", 40) for i in range(8)]
    rig = Rig(
        slots=1024,
        nbytes_per_s=14e9,
        chunk_tokens=64,
        chunk_nbytes=8 << 20,
        prefixes=hits,
    )
    for i, keys in enumerate(hits):
        rig.arrive(f"short{i}", keys)
        rig.run()
    assert served(rig) == 1
    assert 0.9 <= rig.learned / 14e9 <= 1.1


def test_a_short_hit_behind_a_long_one_on_a_slow_drive_is_not_late() -> None:
    """It waits for longer than a deadline before its first chunk lands; the drive reads all the time."""
    short = chain("short", 8)
    rig = long_prefix(2e9, TOKENS, others=[short], prefill_rate=None)
    rig.step()
    rig.arrive("short", short)
    rig.run()
    assert served(rig) == 1
    assert rig.prompts[1].wait_s > 4
    assert rig.cache.stats().load_refusals == {}


# many at once


@pytest.mark.parametrize(("n", "share"), [(2, 0.9), (4, 0.6), (8, 0.6), (8, 0.9)])
def test_who_comes_together_is_served_whole_one_after_the_other(n: int, share: float) -> None:
    rig = crowd(n, share)
    rig.run()
    assert served(rig) == 1
    assert rig.stuck_s == 0
    waits = [prompt.wait_s for prompt in rig.prompts]
    assert waits == sorted(waits), "in the engine's order"
    assert waits[-1] < 1.4 * n * share * (2 << 30) / 7e9, "the drive is not left idle"
    assert rig.cache.stats().load_refusals == {}


def test_what_dram_could_never_hold_is_cut_at_once() -> None:
    rig = crowd(1, 1.5)
    rig.run()
    assert rig.prompts[0].hit == rig.slots - rig.slots // 16
    assert rig.prompts[0].wait_s < 0.4
    assert rig.stuck_s == 0
    assert rig.cache.stats().load_refusals == {Why.TOO_LONG: 1}


def test_a_running_request_stores_while_others_wait_for_room() -> None:
    rig = crowd(8, 0.6)
    decoder = rig.decode(every_s=0.02)
    rig.run()
    assert served(rig) == 1
    assert decoder.taken >= 0.97 * decoder.offered
    assert rig.most_pinned <= 0.9375 * rig.slots


def test_a_short_hit_goes_past_a_long_one_that_waits_for_room() -> None:
    rig = crowd(3, 0.6, others=[chain("short", 4)])
    rig.step()
    short = rig.arrive("short", chain("short", 4))
    rig.run()
    assert short.wait_s < rig.prompts[2].wait_s
    assert served(rig) == 1


# by hand


def test_what_does_not_fit_at_once_comes_in_waves_and_keeps_its_place() -> None:
    made = below(6, A)  # at most half of them are filled at a time
    arrive(made, "r", A[:5])
    assert made.cache.plan_read("r", A[:5]) == ReadPlan(3, tuple(A[:3]))
    arrive(made, "s", A[:3])
    assert made.cache.plan_read("s", A[:3]) == ReadPlan(3, tuple(A[:3])), "joined, not read twice"
    assert len(sent(made, OpKind.READ)) == 3
    made.ranks.answer_all()
    assert ask(made, "s", A[:3]) == 3
    assert made.cache.plan_read("r", A[:5]) == ReadPlan(2, tuple(A[3:5]))
    made.step()
    assert ask(made, "r", A[:5]) == 5
    assert made.cache.stats().load_refusals == {}
    made.verify()


def test_one_request_holds_slots_and_waits_and_the_others_hold_nothing() -> None:
    made = below(8, A, B)
    stored(made, B[:1])
    for name, keys in (("first", A[:7]), ("second", B[:6])):
        arrive(made, name, keys)
    assert ask(made, "first", A[:7]) is None
    made.step()
    assert made.cache.view.pins == dict.fromkeys(A[:4], 1)
    assert ask(made, "second", B[:6]) is None
    assert B[0] not in made.cache.view.pins
    assert ask(made, "first", A[:7]) is None
    made.step()
    assert ask(made, "first", A[:7]) == 7
    assert ask(made, "second", B[:6]) is None, "the first is being loaded"
    load(made, "first", A[:7])
    for _ in range(8):
        made.clock.now += 0.1
        made.step()
        if ask(made, "second", B[:6]) is not None:
            break
    assert ask(made, "second", B[:6]) == 6
    made.verify()


def test_nobody_waits_for_nobody() -> None:
    """All slots but two are pinned by a hit that the engine does not come for."""
    made = below(8, A, B)
    stored(made, B[:6])
    made.step()
    arrive(made, "pins", B[:6])
    assert ask(made, "pins", B[:6]) == 6
    made.step()
    arrive(made, "r", A)
    assert ask(made, "r", A) is None, "as many as fit"
    made.step()
    assert ask(made, "r", A) is None, "somebody may have what ended in this step"
    made.step()
    assert ask(made, "r", A) == 2
    assert made.cache.stats().load_refusals == {Why.NO_SLOT: 1}
    made.verify()


@pytest.mark.parametrize("end", ["depart", "cancel", "reset", "fails", "silent"])
def test_when_the_one_that_holds_slots_ends_the_next_has_its_place(end: str) -> None:
    made = below(8, A, B)
    arrive(made, "first", A[:7])
    arrive(made, "second", B[:7])
    assert ask(made, "first", A[:7]) is None
    assert ask(made, "second", B[:7]) is None
    if end == "fails":
        made.ranks.drain()
        made.ranks.answer_all(OpStatus.ERROR, [OpKind.READ])
    elif end == "silent":
        made.clock.now += 2
        assert ask(made, "first", A[:7]) == 0
    elif end == "reset":
        made.reset(everybody=True)
    else:
        getattr(made.cache, end)("first")
    for _ in range(3):
        made.step()
        made.clock.now += 5  # the tier has rested
    assert not made.cache.view.pins
    if end == "reset":
        put(made, B)
    for _ in range(6):
        if (n := ask(made, "second", B[:7])) is not None:
            break
        made.step()
        made.clock.now += 0.1
    assert n == (0 if end in ("silent", "fails") else 7) or n == 7
    made.cache.depart("second")
    made.cache.depart("first")
    made.step()
    assert not made.cache.view.pins
    made.verify()


@pytest.mark.parametrize(
    ("slots", "below_", "chunks"),
    [(16, 2, 4), (11, 2, 4), (11, 0, 4), (8, 0, 4), (7, 0, 4), (6, 2, 4), (5, 0, 3), (3, 0, 1)],
)
def test_with_several_groups_a_hit_is_cut_to_what_fits_and_comes_in_waves(
    slots: int, below_: int, chunks: int
) -> None:
    """Four chunks of the full group and the two of the window before them; from `below_` on the window group is there."""
    window = chain("a", 8, group=1)
    made = started(EMPTY._replace(slots=slots, hybrid=True))
    put(made, [*A[:4], *window[below_:4]])
    made.cache.arrive("r", [A, window])
    wanted = [*A[:4], *window[2:4]]
    for _ in range(12):
        plan = made.cache.plan_read("r", wanted)
        if plan is None or not plan.reading:
            break
        made.step()
        made.verify()
    n = next((i for i, key in enumerate(A) if not made.cache.lookup("r", key)), 8)
    assert n == chunks
    assert all(made.cache.view.holds(0, key) for key in window[max(0, n - 2) : n])
    assert made.cache.stats().load_refusals == ({} if chunks == 4 else {Why.TOO_LONG: 1})


@pytest.mark.parametrize("full_in", [0, 1])
def test_what_is_left_of_a_long_hit_is_sought_in_linear_time(
    full_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows are in a tier that takes no read now, and so none of all the parts of the hit can be read."""
    n = 600
    full, window = chain("a", n), chain("a", n, group=1)
    shape = Shape(slots=4 * n, capacity=4 * n, modes=(WriteMode.ON_EVICT,) * 2, hybrid=True)
    made = started(shape)
    put(made, window, tier=2)
    made.cache.arrive("r", [full, window])
    if full_in:
        put(made, full)
    else:
        assert len(store(made, "r", full).keys) == n
    real, looks = Index.resident, 0

    def counted(index: Index, key: BlockKey) -> bool:
        nonlocal looks
        looks += 1
        return real(index, key)

    def left(budgets: Budgets, lower: LowerTier, priority: Priority) -> int:
        return 0 if lower.tier == 2 else n

    monkeypatch.setattr(Index, "resident", counted)
    monkeypatch.setattr(Budgets, "left", left)
    plan = made.cache.plan_read("r", [*full, *window[-2:]])
    assert plan is not None
    assert plan.reading == full_in * n, "the windows are still to come"
    assert looks < 30 * n
