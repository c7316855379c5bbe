"""Each computed token of a prompt has one reason, and what was evicted is told from what never was."""

import pytest

from kvtier.brain import Why
from kvtier.brain.evicted import Evicted
from kvtier.types import BlockKey, OpKind, OpStatus, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, rest, started, stored
from tests.brain.fake_ranks import chain

A, B = chain("a", 8), chain("b", 8)
TOKENS = 16
PLAIN = Shape(slots=8, modes=(), watermark=0.0)
BELOW = Shape(
    slots=16,
    capacity=20,
    modes=(WriteMode.IDLE,),
    watermark=0.0,
    found=tuple(("a", i) for i in range(8)),
)


def missed(made: Engine, hit: int, prompt: int = 8 * TOKENS + 5) -> dict[Why, int]:
    """Return why the tokens of request r behind its hit are computed, as the connector asks for it."""
    made.cache.fell_short("r", hit)
    found = made.cache.view.missed("r", hit, prompt)
    assert sum(found.values()) == prompt - hit
    return {why: n for why, n in found.items() if n}


def test_what_is_new_is_absent_and_the_end_is_the_tail() -> None:
    made = started(PLAIN)
    arrive(made, "r", A)
    assert missed(made, 0) == {Why.ABSENT: 8 * TOKENS, Why.TAIL: 5}
    assert missed(made, 3 * TOKENS + 7)[Why.ABSENT] == 5 * TOKENS - 7


def test_the_last_chunk_of_a_prompt_of_whole_chunks_is_its_tail() -> None:
    made = started(PLAIN)
    stored(made, A)
    arrive(made, "r", A)
    assert missed(made, 7 * TOKENS, 8 * TOKENS) == {Why.TAIL: TOKENS}


@pytest.mark.parametrize("lower", [(), (WriteMode.ON_EVICT,), (WriteMode.THROUGH,)])
def test_what_had_no_room_any_more_was_evicted(lower: tuple[WriteMode, ...]) -> None:
    made = started(PLAIN._replace(modes=lower, capacity=4))
    stored(made, A)
    for name in "bcd":
        stored(made, chain(name, 8))
    arrive(made, "r", [*A, *chain("new", 3)])
    assert missed(made, 0, 11 * TOKENS) == {
        Why.EVICTED: 8 * TOKENS,
        Why.ABSENT: 2 * TOKENS,
        Why.TAIL: TOKENS,
    }


def test_what_is_behind_a_hole_is_missed_for_the_hole() -> None:
    made = started(PLAIN)
    stored(made, A)
    made.cache._demotion._drop([A[2]])
    arrive(made, "r", A)
    assert missed(made, 2 * TOKENS) == {Why.EVICTED: 6 * TOKENS, Why.TAIL: 5}


def test_what_rests_below_is_missed_for_that_and_what_is_new_is_absent() -> None:
    made = started(BELOW)
    rest(made.cache)
    made.ranks.drain()
    arrive(made, "r", [*A, *chain("new", 2)])
    assert missed(made, 0, 10 * TOKENS + 1) == {
        Why.RESTING: 8 * TOKENS,
        Why.ABSENT: 2 * TOKENS,
        Why.TAIL: 1,
    }


def test_what_could_not_be_read_is_missed_for_that_though_it_is_gone() -> None:
    made = started(BELOW)
    arrive(made, "r", A)
    made.cache.plan_read("r", A)
    made.ranks.drain()
    made.ranks.answer_all(OpStatus.CORRUPT, [OpKind.READ])
    assert missed(made, 0)[Why.FAILED] >= TOKENS


def test_what_is_there_and_was_not_asked_for_is_unasked() -> None:
    made = started(PLAIN)
    stored(made, A)
    arrive(made, "r", A)
    assert missed(made, 0) == {Why.UNASKED: 8 * TOKENS, Why.TAIL: 5}
    assert made.cache.view.missed("unknown", 3, 10) == {Why.UNASKED: 7}


def test_after_a_reset_nothing_was_evicted() -> None:
    made = started(PLAIN)
    stored(made, A)
    stored(made, B)
    made.ranks.reset()
    arrive(made, "r", A)
    assert Why.EVICTED not in missed(made, 0)


def test_the_memory_of_the_evicted_is_bounded_and_does_not_invent() -> None:
    gone = Evicted()
    keys = [BlockKey(b"%032d\0\0\0\0" % i) for i in range(200_000)]
    assert keys[0] not in gone
    gone.add(keys[::2])
    assert len(gone._tags) * gone._tags.itemsize == 4 << 20
    assert sum(key in gone for key in keys[1::2]) == 0
    assert sum(key in gone for key in keys[::2]) > 90_000, "a later one takes the place of few"
    gone.clear()
    assert keys[0] not in gone
