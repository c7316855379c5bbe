"""Each refusal is provoked, and exactly its counter moves."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from kvtier.brain import CacheStats, ReadPlan, Why
from kvtier.brain.stats import METRICS
from kvtier.hook import HookEvent, HookKind, HookSet
from kvtier.types import Medium, OpKind, OpStatus, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, rest, started, store, stored
from tests.brain.fake_ranks import CHUNK, chain

A, B = chain("a", 8), chain("b", 8)
NONE = Shape(slots=8, modes=(), watermark=0.0)
BELOW = Shape(
    slots=16,
    capacity=20,
    modes=(WriteMode.IDLE,),
    watermark=0.0,
    found=tuple(("a", i) for i in range(8)),
)
EVICT = Shape(slots=2, modes=(WriteMode.ON_EVICT,), watermark=0.0)
FULL = EVICT._replace(modes=(WriteMode.THROUGH,), capacity=20)
NEVER = "tests.brain.fake_engine:Never"

FROM_OUTSIDE = {Why.OFF, Why.HINT, Why.ROLE, Why.TIER_FILTER, Why.ADAPTER, Why.UNSEEN}
"""What the connector says; its own tests provoke them."""
TO_COME = {Why.ASKING, Why.ASKED_LATE, Why.DETACHED, Why.FOREIGN_HANDOFF}
"""Of tiers that servers share: nothing says them yet."""


def refuse(tier: str) -> HookSet:
    """Make a hook that lets nothing into one tier."""

    def never(event: HookEvent) -> bool:
        return event.tier != tier

    return HookSet(hooks={HookKind.INSERT: [never]}, budget_s=60.0)


def read(made: Engine, name: str, n: int, *, groups: int = 8) -> None:
    arrive(made, name, A[:groups])
    made.cache.plan_read(name, A[:n])


# loads: a request, once


def absent(made: Engine) -> None:
    arrive(made, "r", B)
    for _ in range(2):
        assert made.cache.fell_short("r", 0) is Why.ABSENT


def evicted(made: Engine) -> None:
    stored(made, A[:1])
    stored(made, B[:1])
    arrive(made, "r", A)
    assert made.cache.fell_short("r", 0) is Why.EVICTED


def opening() -> Engine:
    made = Engine(BELOW)
    arrive(made, "r", A)
    assert made.cache.fell_short("r", 0) is Why.OPENING
    return made


def resting(made: Engine) -> None:
    rest(made.cache)
    made.ranks.drain()  # from the next step on, lookups do not see it
    arrive(made, "r", A)
    assert not made.cache.lookup("r", A[0])
    assert made.cache.fell_short("r", 0) is Why.RESTING


def resting_between(made: Engine) -> None:
    """The tier fails after the lookups and before the plan."""
    arrive(made, "r", A)
    assert made.cache.lookup("r", A[0])
    rest(made.cache)
    made.cache.plan_read("r", A)


def too_dear(made: Engine) -> None:
    made.cache.prefilled(16_000, 1.0)
    read(made, "r", 8)


def no_slot(made: Engine) -> None:
    stored(made, B[:2])
    arrive(made, "holds", B)
    assert made.cache.plan_read("holds", B[:2]) is None
    read(made, "r", 1)


def read_budget(made: Engine) -> None:
    read(made, "first", 8)
    arrive(made, "r", B)
    made.cache.plan_read("r", B[:1])  # it waits for its turn, which does not come
    made.clock.now += 3
    made.ranks.drain()
    assert made.cache.ready("r")
    made.cache.plan_read("r", B[:1])


def waiting_for_room(made: Engine) -> None:
    made.cache.prefilled(16_000, 1.0)  # a chunk takes a millisecond
    read(made, "first", 8)
    arrive(made, "r", B)
    made.cache.plan_read("r", B[:1])
    made.clock.now += 0.01
    assert made.cache.ready("r")
    made.cache.plan_read("r", B[:1])


def too_long(made: Engine) -> None:
    read(made, "r", 8)
    while made.cache.plan_read("r", A[:8]) != ReadPlan(0):
        made.step()


def late(made: Engine) -> None:
    read(made, "r", 2)
    made.ranks.drain()
    made.clock.now += 3
    assert made.cache.ready("r")


def failed(made: Engine) -> None:
    read(made, "r", 2)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR, [OpKind.READ])


def vanished(made: Engine) -> None:
    arrive(made, "r", B)
    made.ranks.loaded(made.cache.plan_load("r", B[:2]), B[:2])


def busy(made: Engine) -> None:
    """What comes from the device now cannot be read from below at the same time."""
    arrive(made, "first", A)
    assert made.cache.plan_store("first", A[:1]).keys
    read(made, "r", 1)


# stores: chunks


def not_admitted(made: Engine) -> None:
    arrive(made, "r", A)
    made.cache.plan_store("r", A[:3])


def vetoed(made: Engine) -> None:
    arrive(made, "r", A)
    made.cache.plan_store("r", A[:1])


def no_room(made: Engine) -> None:
    arrive(made, "r", A)
    made.cache.plan_store("r", A[:4])


def orphan(made: Engine) -> None:
    arrive(made, "r", A)
    made.cache.plan_store("r", A[3:4])


def stale(made: Engine) -> None:
    arrive(made, "r", A)
    made.ranks.reset()
    made.cache.plan_store("r", A[:2])


# writes into a lower tier: chunks


def driven_out(made: Engine) -> None:
    """Two chunks of A leave tier 0 for two of B."""
    stored(made, A[:2])
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:2])


def driven_out_at_rest(made: Engine) -> None:
    rest(made.cache)
    driven_out(made)


def driven_out_unopened() -> Engine:
    made = Engine(EVICT)
    driven_out(made)
    return made


def driven_out_while_it_is_full(made: Engine) -> None:
    stored(made, A[:1])
    made.ranks.medium = 0
    made.step()
    made.step()
    driven_out(made)


def driven_out_beside_many(made: Engine) -> None:
    """Three writes may be under way, five slots are wanted."""
    stored(made, A[:5])
    arrive(made, "b", B)
    made.cache.plan_store("b", B[:5])


def driven_out_onto_errors(made: Engine) -> None:
    driven_out(made)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.ERROR, [OpKind.WRITE])


class Case(NamedTuple):
    """How a refusal is provoked, and what is counted then."""

    why: Why
    provoke: Callable[[Engine], None] | Callable[[], Engine]
    shape: Shape | None
    where: str
    chunks: int = 1


SLOW = BELOW._replace(medium=Medium(read=8 * CHUNK / 10.0))
BOTH = BELOW._replace(slots=16, found=(*BELOW.found, ("b", 0)))
CASES = [
    Case(Why.ABSENT, absent, NONE, "load"),
    Case(Why.EVICTED, evicted, NONE._replace(slots=1), "load"),
    Case(Why.OPENING, opening, None, "load"),
    Case(Why.RESTING, resting, BELOW, "load"),
    Case(Why.RESTING, resting_between, BELOW, "load"),
    Case(Why.TOO_DEAR, too_dear, SLOW, "load"),
    Case(Why.NO_SLOT, no_slot, BELOW._replace(slots=2), "load"),
    Case(Why.READ_BUDGET, read_budget, BOTH, "load"),
    Case(Why.WAITING_FOR_ROOM, waiting_for_room, BOTH, "load"),
    Case(Why.TOO_LONG, too_long, BELOW._replace(slots=7), "load"),
    Case(Why.LATE, late, BELOW, "load"),
    Case(Why.FAILED, failed, BELOW, "load"),
    Case(Why.VANISHED, vanished, NONE, "load"),
    Case(Why.BUSY, busy, BELOW, "load"),
    Case(Why.NOT_ADMITTED, not_admitted, NONE._replace(admission=NEVER), "store", 3),
    Case(Why.VETOED, vetoed, NONE._replace(hooks=refuse("dram")), "store"),
    Case(Why.NO_ROOM, no_room, NONE._replace(slots=3), "store"),
    Case(Why.ORPHAN, orphan, NONE, "store"),
    Case(Why.STALE, stale, NONE, "store", 2),
    Case(Why.RESTING, driven_out_at_rest, EVICT, "tier", 2),
    Case(Why.OPENING, driven_out_unopened, None, "tier", 2),
    Case(Why.NOT_ADMITTED, driven_out, EVICT._replace(below_admission=NEVER), "tier", 2),
    Case(Why.VETOED, driven_out, EVICT._replace(hooks=refuse("tier1")), "tier", 2),
    Case(Why.NO_ROOM, driven_out, EVICT._replace(capacity=1), "tier", 1),
    Case(Why.FULL, driven_out_while_it_is_full, FULL, "tier", 2),
    Case(Why.BUSY, driven_out_beside_many, EVICT._replace(slots=5, capacity=20), "tier", 2),
    Case(Why.FAILED, driven_out_onto_errors, EVICT, "tier", 2),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{each.where} {each.why}" for each in CASES])
def test_exactly_its_counter_moves(case: Case) -> None:
    if case.shape is None:
        made = case.provoke()  # type: ignore[call-arg]  # it makes an engine that is not started
        assert isinstance(made, Engine)
    else:
        made = started(case.shape)
        case.provoke(made)  # type: ignore[call-arg]
    found = refusals(made.cache.stats())
    if case.where == "tier":  # who waits for these slots lacks room at once
        found.pop(("store", Why.NO_ROOM), None)
    assert found == {(case.where, case.why): case.chunks}
    made.cache.check()


def refusals(stats: CacheStats) -> dict[tuple[str, Why], int]:
    found = {("load", why): n for why, n in stats.load_refusals.items()}
    found |= {("store", why): n for why, n in stats.store_refusals.items()}
    for tier in stats.tiers[1:]:
        found |= {("tier", why): n for why, n in tier.refused.items()}
    return found


OF_TOKENS = {Why.TAIL, Why.UNASKED}
"""Why prompt tokens are computed, where no hit ends early: `test_misses` provokes them."""


def test_every_reason_is_provoked_here_or_said_by_the_connector_or_to_come() -> None:
    here = {case.why for case in CASES}
    assert here | FROM_OUTSIDE | TO_COME | OF_TOKENS == set(Why)
    assert not here & (FROM_OUTSIDE | TO_COME | OF_TOKENS)


def test_each_that_is_provoked_is_shown_before_it_happens() -> None:
    shown = {each.name: each.of for each in METRICS}
    names = {"load": "kvtier:load_refusals", "store": "kvtier:store_refusals"}
    for case in CASES:
        assert case.why in shown[names.get(case.where, "kvtier:tier_refused_chunks")], case


def test_the_first_reason_of_a_request_is_the_one_that_counts() -> None:
    made = started(BELOW)
    failed(made)
    assert made.cache.fell_short("r", 0) is Why.FAILED
    made.cache.refuse_load("r", Why.HINT)
    assert made.cache.stats().load_refusals == {Why.FAILED: 1}
    made.cache.preempted("r")
    made.cache.refuse_load("r", Why.HINT)
    assert made.cache.stats().load_refusals == {Why.FAILED: 1, Why.HINT: 1}


def test_a_hit_of_the_whole_prefix_falls_short_of_nothing() -> None:
    made = started(NONE)
    stored(made, A)
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A) is None
    assert made.cache.fell_short("r", 8 * 16) is None
    assert made.cache.fell_short("r", 7 * 16) is None, (
        "the last chunk is there; vLLM leaves a token"
    )
    assert store(made, "r", A).keys == ()
    assert refusals(made.cache.stats()) == {}


def test_what_is_nowhere_is_no_hit_where_nothing_is_below_dram() -> None:
    made = started(NONE)
    made.cache.prefilled(16_000, 1.0)
    arrive(made, "r", A)
    assert made.cache.plan_read("r", A) == ReadPlan(0)
