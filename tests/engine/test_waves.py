"""Hits larger than half of DRAM, from a slow file tier: they come in waves, whole and right, and leave nothing behind."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.rig import ASKED, CHUNK, COMMON, EVERY, LONG, SHARED, Disk, Rig, config, rig
from tests.engine.scenarios import TOKENS, Reference
from tests.patience import until

ASKED_OF_LLAMA = EVERY
SLOTS = 20  # ten of them may be filled at a time; LONG has sixteen chunks


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack) -> Disk:
    made = Disk(tmp_path_factory.mktemp("waves"))
    after_engines.callback(made.close)
    return made


@pytest.fixture
def slow(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    yield from rig(engine, config(llama, disk, slots=SLOTS), disk, reference)


def in_a_wave(slow: Rig, name: str) -> None:
    """Ask for LONG, whose chunks are on the slow disk, and stop in the middle of it."""
    slow.stored(LONG)
    slow.disk.fail(read_delay_s=0.3)
    slow.trust()
    slow.engine.add(name, LONG, TOKENS)
    until(
        lambda: 0 < slow.count("pinned_chunks") < 16,
        "some of its chunks are here",
        slow.engine.step,
    )
    assert slow.engine.call("tests.engine.faults:holder"), "another wave follows"


def test_a_hit_of_more_than_half_of_dram_is_served_whole(slow: Rig) -> None:
    slow.stored(LONG)
    slow.disk.fail(read_delay_s=0.1)
    assert slow.cached(LONG) == 16


def test_requests_that_do_not_fit_together_are_served_whole_one_after_the_other(slow: Rig) -> None:
    prompts = [LONG, *SHARED[:2]]
    slow.stored(LONG)
    for prompt in SHARED[:2]:
        slow.stored(prompt)
    slow.disk.fail(read_delay_s=0.05)
    slow.trust()
    assert [answer.cached // CHUNK for answer in slow.ask(*prompts)] == [16, 12, 12]


def test_an_abort_in_the_middle_of_a_wave_leaves_nothing_pinned(slow: Rig) -> None:
    in_a_wave(slow, "aborted")
    slow.engine.abort("aborted")
    slow.settle()
    assert slow.count("pinned_chunks") == 0
    slow.disk.fail()
    assert slow.cached(LONG) == 16


@pytest.mark.parametrize("running", [False, True])
def test_a_reset_in_the_middle_of_a_wave_leaves_nothing_pinned(slow: Rig, running: bool) -> None:
    in_a_wave(slow, "reset")
    slow.engine.reset(running=running, connector=True)
    (answer,) = slow.engine.drain().values()
    assert answer.tokens == slow.reference.of([LONG])[0]
    assert answer.cached == 0, "it was stored before the reset"
    slow.settle()
    assert slow.count("pinned_chunks") == 0
    slow.ask(COMMON, ASKED[0])
