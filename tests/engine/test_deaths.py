"""Processes that die under the real engine: answers stay vLLM's own, and what was written is found again."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from kvtier.demo.process import session
from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineError
from tests.engine.rig import ASKED, EVERY, SHARED, Disk, Rig, config, rig
from tests.engine.scenarios import TOKENS, Reference
from tests.patience import until

ASKED_OF_LLAMA = EVERY
OLD, NEW = ASKED[:4], ASKED[4:8]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack) -> Disk:
    made = Disk(tmp_path_factory.mktemp("deaths"))
    after_engines.callback(made.close)
    return made


@pytest.fixture
def mortal(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    yield from rig(engine, config(llama, disk), disk, reference)


def test_the_io_process_dies_while_it_reads(mortal: Rig) -> None:
    prompt, resident = OLD[:2]
    mortal.stored(prompt)
    mortal.cached(resident)
    mortal.settle()
    assert mortal.engine.reset()
    died = mortal.failures("died")
    mortal.disk.fail(hang=True)
    mortal.trust()
    mortal.engine.add("reading", prompt, TOKENS)
    until(lambda: mortal.count("reading_chunks") == 8, "its chunks are read", mortal.engine.step)
    pid = mortal.kill_io()
    mortal.disk.fail()
    answers = mortal.engine.drain()
    assert answers["reading"].tokens == mortal.reference.of([prompt])[0]
    assert answers["reading"].cached == 0
    assert mortal.failures("died") == died + 8
    assert mortal.cached(resident) == 8, "from DRAM"
    mortal.settle()
    assert mortal.io_pid() not in (None, pid)
    mortal.cool()
    assert mortal.cached(prompt) == 8, "from the disk again"


def test_the_io_process_dies_while_it_writes(mortal: Rig) -> None:
    died = mortal.failures("died")
    mortal.disk.fail(hang=True)
    assert [mortal.cached(prompt) for prompt in NEW[:2]] == [0, 0]
    flying = mortal.count("tier_in_flight")
    assert flying > 0
    mortal.disk.leave_partial()
    pid = mortal.kill_io()
    mortal.disk.fail()
    assert [mortal.cached(prompt) for prompt in NEW[2:]] == [0, 0]
    assert mortal.engine.reset()
    assert [mortal.cached(prompt) for prompt in NEW[:2]] == [8, 8], "from DRAM"
    mortal.settle()
    assert mortal.failures("died") >= died + flying
    assert mortal.io_pid() not in (None, pid)
    assert mortal.disk.partial() == []
    for prompt in NEW:
        mortal.cool()
        assert mortal.cached(prompt) == 8, "from the disk"


def test_the_io_process_dies_again_and_again(mortal: Rig) -> None:
    for _ in range(3):
        mortal.cool()
        mortal.kill_io()
        mortal.ask(*OLD, *NEW)
        mortal.settle()
    mortal.cool()
    assert mortal.cached(NEW[0]) == 8


def test_the_engine_dies_while_it_writes(mortal: Rig) -> None:
    before = mortal.disk.records()
    mortal.disk.fail(write_delay_s=0.5)  # between the first record and the last
    killing = Thread(target=kill_when_writing, args=(mortal,))
    killing.start()
    with pytest.raises(EngineError):
        ask_for_ever(mortal)
    killing.join()
    mortal.engine.kill()
    assert 0 < len(mortal.disk.records() - before) < 8 + 3 * 4
    mortal.disk.assert_whole()
    mortal.disk.leave_partial()


def ask_for_ever(mortal: Rig) -> None:
    while True:
        mortal.engine.answers(SHARED, TOKENS)


def kill_when_writing(mortal: Rig) -> None:
    """Kill the engine, all of it, as soon as there is one more record."""
    before, pids = mortal.disk.records(), session(mortal.engine.process.pid)
    until(lambda: mortal.disk.records() != before, "a record is written")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_the_next_engine_finds_what_was_written(mortal: Rig) -> None:
    assert mortal.disk.partial() == []
    assert mortal.count("tier_chunks") == len(mortal.disk.records())
    for prompt in OLD[:2] + NEW:
        assert mortal.cached(prompt) == 8
    mortal.ask(*SHARED)


def test_a_second_engine_is_refused(mortal: Rig, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"is in use by another engine \(rank 0, pid \d+\); stop it"
    ):
        Engine(mortal.engine.config, tmp_path / "second.log")
    assert mortal.cached(OLD[0]) == 8


def test_a_graceful_restart_forgets_nothing(
    mortal: Rig, engine: EngineFactory, disk: Disk, reference: Reference
) -> None:
    mortal.cool()
    mortal.engine.close()
    assert disk.partial() == []
    disk.assert_whole()
    again = Rig(engine(replace(mortal.engine.config, fresh=True)), disk, reference)
    again.settle()
    for prompt in OLD[:2] + NEW + SHARED:
        assert again.cached(prompt) >= 8
    assert again.count("tier_hit_chunks_total") > 0
    again.assert_well()
