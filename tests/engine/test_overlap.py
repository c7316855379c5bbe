"""Hits whose last chunk is read while the others are copied, on the real engine: answers are vLLM's own, whatever becomes of it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.rig import EVERY, LONG, Disk, Rig, config, rig
from tests.engine.scenarios import TOKENS, Reference
from tests.patience import until

ASKED_OF_LLAMA = EVERY
CHUNKS = 16  # of LONG
KEYS: list[str] = []  # of its records, as they were found first or after a reset
COPY_S = 0.3  # of a chunk, as the brain is made to believe


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack) -> Disk:
    made = Disk(tmp_path_factory.mktemp("overlap"))
    after_engines.callback(made.close)
    return made


@pytest.fixture
def late(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    made = config(llama, disk, slots=64)
    assert isinstance(made.kvtier, dict)
    made.kvtier["overlap"] = True
    yield from rig(engine, made, disk, reference)


def loading(late: Rig, chunk: int, **faults: object) -> None:
    """Ask for LONG, and stop where its hit is given and one chunk of it is still awaited."""
    KEYS[:] = [record.stem for record in late.stored(LONG)] or KEYS
    late.disk.fail(key=KEYS[chunk], **faults)
    late.trust()
    late.engine.call("tests.engine.faults:slow_copies", COPY_S)
    late.engine.add("late", LONG, TOKENS)
    step = late.engine.step
    until(lambda: chunk in awaited(late), "it loads", step)
    until(lambda: len(awaited(late)) <= 1, "the others are here", step)
    assert awaited(late) == [chunk]


def awaited(late: Rig) -> list[int]:
    found: list[int] = late.engine.call("tests.engine.faults:awaited")
    return found


def answer(late: Rig) -> int:
    """Run to the end; return how many chunks the next one finds."""
    answers = late.engine.drain()
    assert answers["late"].tokens == late.reference.of([LONG])[0]
    late.disk.fail()
    late.settle()
    assert late.engine.reset()
    return late.cached(LONG)


def test_a_chunk_that_comes_late_is_used(late: Rig) -> None:
    loading(late, 7, read_delay_s=2.0)
    assert answer(late) == CHUNKS


@pytest.mark.parametrize("chunk", [0, 15])
def test_a_chunk_that_fails_late_is_computed(late: Rig, chunk: int) -> None:
    failed = late.failures("error")
    loading(late, chunk, read_delay_s=2.0, read_errno="EIO")
    assert answer(late) == CHUNKS
    assert late.failures("error") == failed + 1


def test_a_chunk_that_does_not_come_is_computed(late: Rig) -> None:
    loading(late, 7, hang=True)
    assert answer(late) == CHUNKS


def test_an_abort(late: Rig) -> None:
    loading(late, 7, hang=True)
    late.engine.abort("late")
    late.disk.fail()
    late.settle()
    assert late.cached(LONG) == CHUNKS


def test_the_io_process_is_killed(late: Rig) -> None:
    loading(late, 7, hang=True)
    pid = late.kill_io()
    late.disk.fail()
    assert late.engine.drain()["late"].tokens == late.reference.of([LONG])[0]
    late.settle()
    assert late.io_pid() not in (None, pid)


def test_a_reset(late: Rig) -> None:
    """The last one: behind it nothing is stored until the device's cache is reset too."""
    loading(late, 7, hang=True)
    late.engine.reset(connector=True)
    late.disk.fail()
    assert late.engine.drain()["late"].tokens == late.reference.of([LONG])[0]
