"""Far too little room, on the real engine: no byte too many, nobody waits, answers stay vLLM's own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.faults import FILLER
from tests.engine.rig import ASKED, EVERY, RECORD, SHARED, Disk, Rig, config, rig
from tests.engine.scenarios import Reference
from tests.patience import until

ASKED_OF_LLAMA = EVERY
SLOTS = 4
RECORDS = 15


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack) -> Disk:
    made = Disk(tmp_path_factory.mktemp("capacity"))
    after_engines.callback(made.close)
    return made


@pytest.fixture
def small(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    made = config(llama, disk, slots=SLOTS, capacity=RECORDS * RECORD)
    yield from rig(engine, made, disk, reference)


@contextmanager
def never_more_than(nbytes: int, disk: Disk) -> Iterator[None]:
    """Weigh records, whole and half written, all the while and at the end."""
    seen, done = [0], Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(disk.weigh())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert 0 < max(*seen, disk.weigh()) <= nbytes


def test_the_disk_never_holds_more_than_its_capacity(small: Rig) -> None:
    with never_more_than(RECORDS * RECORD, small.disk):
        for prompt in ASKED:
            small.ask(prompt)
        small.settle()
    assert small.count("tier_evictions_total") > 0
    assert len(small.disk.records()) >= RECORDS // 2, "room is used"
    assert small.count("tier_used_bytes") == small.disk.weigh()


def test_more_requests_than_slots_wait_for_nobody(small: Rig) -> None:
    with never_more_than(RECORDS * RECORD, small.disk):
        for _ in range(2):
            small.ask(*ASKED[:6], *SHARED)
    assert small.count("store_refusals_total", reason="no_room") > 0


@pytest.fixture
def beyond(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    """A disk with room for 80 records, and a capacity of 2000."""
    disk.fail()
    disk.fill(left=80 * RECORD)
    yield Rig(engine(config(llama, disk, slots=32)), disk, reference)
    disk.free()


def test_slots_that_wait_for_a_hung_disk_are_waited_for_by_nobody(small: Rig) -> None:
    small.disk.fail(hang=True)
    small.ask(*ASKED[6:10])
    assert small.engine.reset()
    small.ask(*ASKED[6:10])
    assert small.count("free_slots") < SLOTS
    small.disk.fail()
    small.settle()
    assert small.ask(ASKED[0])


def test_a_capacity_above_what_the_disk_has(beyond: Rig) -> None:
    """128 chunks for 80 places: what is there is read, nothing trips, and no answer is another's."""
    step = partial(beyond.engine.generate, [FILLER], 1)
    for prompt in ASKED:
        beyond.ask(prompt)
        step()
    until(lambda: beyond.failures("no_room") > 0, "a write finds no room", step)
    assert beyond.count("tier_short_bytes") > 1 << 29
    assert beyond.engine.reset()
    latest_first = ASKED[::-1]  # in the other order each would be evicted just before its turn
    hits = [beyond.cached(prompt) for prompt in latest_first]
    assert sum(hits) >= 60, hits
    assert (beyond.count("tier_trips_total"), beyond.failures("error")) == (0, 0)
    assert beyond.disk.partial() == []
    beyond.disk.assert_whole()
    beyond.engine.call("tests.engine.faults:check_brain")
