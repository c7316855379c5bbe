"""Keys that end inside a chunk, of which hybrid models have some: kept, read and evicted as chunks are, behind their prefix."""

from kvtier.brain import Why
from kvtier.types import BlockKey, Medium, OpKind, WriteMode
from tests.brain.fake_engine import Engine, Shape, here, sent, started
from tests.brain.fake_ranks import RECORD, Content, chain

FULL, STATES = chain("a", 4), chain("a", 4, group=1)
TAIL = [chain("a~", 4, group)[3] for group in (0, 1)]  # behind three chunks
END = 3 * 16 + 8
HYBRID = Shape(modes=(WriteMode.THROUGH,), watermark=0.0, slots=16, capacity=20, hybrid=True)


def arrive(made: Engine, name: str, *, tail: bool = True) -> None:
    made.cache.arrive(name, [FULL, STATES])
    if tail:
        made.cache.end_inside(name, dict.fromkeys(TAIL, END))


def store(made: Engine, name: str, keys: list[BlockKey]) -> list[BlockKey]:
    plan = made.ranks.stored(made.cache.plan_store(name, keys))
    if plan.keys:
        made.ranks.finish(plan.plan_id)
    return list(plan.keys)


def test_a_tail_is_stored_behind_the_whole_chunks_before_it() -> None:
    made = started(HYBRID)
    arrive(made, "r")
    store(made, "r", FULL[:3])
    assert store(made, "r", TAIL) == TAIL
    assert here(made, TAIL) == [True, True]
    view = made.cache.view
    assert [view.parent(key) for key in TAIL] == [FULL[2], None]
    assert [view.end(key) for key in TAIL] == [END, END]
    made.verify()


def test_a_tail_that_nobody_announced_is_none_of_the_request() -> None:
    made = started(HYBRID)
    arrive(made, "r", tail=False)
    store(made, "r", FULL[:3])
    assert store(made, "r", TAIL) == []


def test_a_tail_without_its_prefix_is_refused() -> None:
    made = started(HYBRID)
    arrive(made, "r")
    store(made, "r", FULL[:2])
    assert store(made, "r", TAIL[:1]) == []
    assert made.cache.stats().store_refusals == {Why.ORPHAN: 1}


def test_a_tail_before_the_first_whole_chunk_has_no_parent() -> None:
    made = started(HYBRID)
    made.cache.arrive("r", [[], []])
    made.cache.end_inside("r", dict.fromkeys(TAIL, 8))
    assert store(made, "r", TAIL) == TAIL
    assert [made.cache.view.parent(key) for key in TAIL] == [None, None]


def test_a_tail_is_evicted_before_its_prefix() -> None:
    made = started(HYBRID._replace(slots=4, modes=()))
    arrive(made, "r")
    store(made, "r", [*FULL[:3], TAIL[0]])
    made.cache.depart("r")
    made.cache.arrive("other", [chain("b", 1), []])
    assert store(made, "other", chain("b", 1))
    assert here(made, [*FULL[:3], TAIL[0]]) == [True, True, True, False]


def found_at_start(medium: Medium | None = None) -> Engine:
    """An engine whose scan finds three chunks and a tail in its lower tier."""
    made = Engine(HYBRID._replace(medium=medium))
    made.ranks.ranks[0].records[1] = {key: Content(key, 0) for key in [*FULL[:3], *TAIL]}
    made.step()
    made.list_all()
    made.step()
    made.ranks.sent.clear()
    return made


def test_what_a_scan_found_of_a_tail_is_placed_and_read_when_a_request_shows_it() -> None:
    made = found_at_start()
    arrive(made, "r")
    keys = [*FULL[:3], *TAIL]
    assert all(made.cache.lookup("r", key) for key in keys)
    plan = made.cache.plan_read("r", keys)
    assert plan is not None
    assert plan.keys == tuple(keys)
    reads = {op.key: op for op in sent(made, OpKind.READ)}
    assert [reads[key].end_token for key in TAIL] == [END, END]
    assert reads[TAIL[0]].parent == FULL[2]
    made.ranks.answer_all()
    assert made.cache.ready("r")
    assert made.cache.plan_read("r", keys) is None
    assert made.cache.view.unlinked == 0
    made.verify()


def test_a_tail_is_worth_the_tokens_before_its_end() -> None:
    slow = Medium(read=RECORD, latency_s=1.0)
    made = found_at_start(slow)
    made.cache.prefilled(1000, 1e-3)
    arrive(made, "r")
    plan = made.cache.plan_read("r", TAIL)
    assert plan is not None
    assert plan.reading == 0
    assert made.cache.stats().load_refusals == {Why.TOO_DEAR: 1}
