"""Requests come, wait, are preempted and aborted; caches are reset, engines pause: output stays right."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig, EngineError
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference, nvme

pytestmark = pytest.mark.core

BLOCKS = 24
LONG = prompts(6, 1500, seed=41)
MANY = prompts(8, 380, seed=42)  # four tokens before the third block is full
SIDE_BY_SIDE = [prompt[:1000] for prompt in LONG[:2]]  # the device has room for both at once
ASKED_OF_LLAMA = LONG + MANY + SIDE_BY_SIDE
CLEAN = {"pinned": 0, "reading": 0, "quarantined": 0, "requests": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nvme")


@pytest.fixture(scope="module")
def kvtier(reference: Reference, engine: EngineFactory, llama: Path, folder: Path) -> Engine:
    config = EngineConfig(
        model=llama,
        blocks=BLOCKS,
        kvtier=nvme(folder, dram_capacity="24MiB"),
        in_process=True,
        env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
    )
    return engine(config)


def idle(engine: Engine) -> dict[str, int]:
    found: dict[str, int] = engine.call("tests.engine.inside:idle")
    return found


def fill(engine: Engine, reference: Reference) -> None:
    """Bring LONG below the device; the first tokens say whether what was there is right."""
    for prompt in LONG:
        (tokens,) = engine.generate([prompt], 2)
        assert tokens == reference.of([prompt])[0][:2]


def test_abort_at_every_step_of_a_load(kvtier: Engine, reference: Reference) -> None:
    fill(kvtier, reference)
    for steps in range(12):
        kvtier.add("aborted", LONG[0], TOKENS)
        kvtier.add("stays", LONG[0][:1100] + MANY[0], TOKENS)
        for _ in range(steps):
            kvtier.step()
        kvtier.abort("aborted")
        kvtier.drain()
        assert idle(kvtier) == CLEAN
        kvtier.generate([LONG[1]], 1)  # pushes LONG[0] off the device
        kvtier.generate([LONG[2]], 1)
    assert kvtier.generate([LONG[0]], TOKENS) == reference.of([LONG[0]])


def test_preemption(kvtier: Engine, reference: Reference) -> None:
    before = kvtier.metrics()["vllm:num_preemptions_total"]
    for i, prompt in enumerate(MANY):
        kvtier.add(f"{i}", prompt, 140)  # two more blocks
    answers = kvtier.drain()
    assert kvtier.metrics()["vllm:num_preemptions_total"] > before
    got = [answers[f"{i}"].tokens[:TOKENS] for i in range(len(MANY))]
    assert got == reference.of(MANY)
    assert idle(kvtier) == CLEAN


@pytest.mark.parametrize("steps", range(0, 10, 2))
@pytest.mark.parametrize("running", [False, True])
def test_reset_while_reads_writes_and_loads_run(
    kvtier: Engine, reference: Reference, steps: int, running: bool
) -> None:
    fill(kvtier, reference)
    for i, prompt in enumerate([LONG[0], LONG[5], MANY[0]]):
        kvtier.add(f"{i}", prompt, TOKENS + 10)  # no answer is whole before the reset
    for _ in range(steps):
        kvtier.step()
    with suppress(EngineError):  # vLLM's own refusal, while a load holds blocks
        if running:
            kvtier.call("tests.engine.inside:reset_running", True)
        else:
            kvtier.reset(connector=True)
    answers = kvtier.drain()
    got = [answers[f"{i}"].tokens[:TOKENS] for i in range(3)]
    assert got == reference.of([LONG[0], LONG[5], MANY[0]])
    assert idle(kvtier) == CLEAN
    kvtier.reset(connector=True)
    (answer,) = kvtier.answers([LONG[1]], TOKENS)
    assert answer.cached == 0, "it was stored before the reset"
    assert answer.tokens == reference.of([LONG[1]])[0]


@pytest.mark.parametrize("tokens", [1, 5])
def test_running_requests_that_a_reset_preempts_are_resumed(
    kvtier: Engine, reference: Reference, tokens: int
) -> None:
    """Only the device's cache is emptied, so that each of them finds its prefix in kvtier at once."""
    fill(kvtier, reference)
    for i, prompt in enumerate(SIDE_BY_SIDE):
        kvtier.add(f"{i}", prompt, 5 * TOKENS)
    so_far = {"0": 0, "1": 0}
    while min(so_far.values()) < tokens:  # however long the loads take: vLLM refuses while one runs
        so_far |= {name: len(answer.tokens) for name, answer in kvtier.step().items()}
    assert kvtier.call("tests.engine.inside:reset_running", False)
    answers = kvtier.drain()
    got = [answers[f"{i}"].tokens[:TOKENS] for i in range(2)]
    assert got == reference.of(SIDE_BY_SIDE)
    assert idle(kvtier) == CLEAN


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("how", ["pause", "sleep"])
def test_pause_and_sleep_while_a_load_runs(
    kvtier: Engine, reference: Reference, how: str, steps: int
) -> None:
    fill(kvtier, reference)
    kvtier.add("0", LONG[0], TOKENS)
    for _ in range(steps):
        kvtier.step()
    assert kvtier.call(f"tests.engine.inside:{how}")
    kvtier.call("tests.engine.inside:resume")
    assert kvtier.drain()["0"].tokens == reference.of([LONG[0]])[0]
    assert idle(kvtier) == CLEAN


def test_deep_sleep_forgets_everything(kvtier: Engine, reference: Reference) -> None:
    fill(kvtier, reference)
    kvtier.sleep(level=1)
    kvtier.wake_up()
    (answer,) = kvtier.answers([LONG[5]], TOKENS)
    assert answer.cached == 0
    assert answer.tokens == reference.of([LONG[5]])[0]
    assert idle(kvtier) == CLEAN


def test_two_salts_never_share_a_block(kvtier: Engine, reference: Reference) -> None:
    for salt in ("one", "two"):
        first = kvtier.call("tests.engine.inside:salted", [LONG[3]], salt, TOKENS)
        assert first == [[reference.of([LONG[3]])[0], 0]]
        kvtier.generate(LONG[:2], 1)
    ((tokens, cached),) = kvtier.call("tests.engine.inside:salted", [LONG[3]], "one", TOKENS)
    assert tokens == reference.of([LONG[3]])[0]
    assert cached >= 1024


def test_a_request_may_refuse_to_store_and_to_load(kvtier: Engine, reference: Reference) -> None:
    kvtier.reset(connector=True)
    asked = [LONG[4]]
    plain = "tests.engine.inside:hinted"
    assert kvtier.call(plain, asked, {"kvtier": {"store": False}}, TOKENS)[0][1] == 0
    kvtier.generate(LONG[:2], 1)
    assert kvtier.call(plain, asked, {}, TOKENS)[0][1] == 0, "the first did not store"
    kvtier.generate(LONG[:2], 1)
    assert kvtier.call(plain, asked, {"kvtier": {"load": False}}, TOKENS)[0][1] == 0
    kvtier.generate(LONG[:2], 1)
    ((tokens, cached),) = kvtier.call(plain, asked, {}, TOKENS)
    assert cached >= 1024
    assert tokens == reference.of(asked)[0]


def test_weights_changed_in_place(kvtier: Engine, reference: Reference, folder: Path) -> None:
    fill(kvtier, reference)
    assert kvtier.call("tests.engine.inside:scale_weights", 0.5) > 0
    assert kvtier.reset(connector=True)
    (changed,) = kvtier.answers([LONG[0]], TOKENS)
    assert changed.cached == 0
    assert changed.tokens != reference.of([LONG[0]])[0]
    kvtier.generate(LONG[1:3], 1)
    (again,) = kvtier.answers([LONG[0]], TOKENS)
    assert again.cached >= 1024
    assert again.tokens == changed.tokens
    assert idle(kvtier) == CLEAN


def test_nothing_of_before_a_reset_is_hit_after_a_restart(
    kvtier: Engine, reference: Reference, engine: EngineFactory, llama: Path, folder: Path
) -> None:
    del kvtier  # its records, of before and after the reset, are in the folder
    restarted = engine(
        EngineConfig(model=llama, blocks=BLOCKS, kvtier=nvme(folder, dram_capacity="24MiB"))
    )
    for prompt in LONG:
        (answer,) = restarted.answers([prompt], TOKENS)
        assert answer.cached == 0
        assert answer.tokens == reference.of([prompt])[0]


def test_a_reset_outlives_an_engine_that_never_steps_again(
    reference: Reference,
    engine: EngineFactory,
    llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("reset")
    config = nvme(folder, dram_capacity="24MiB", write="through")
    first = engine(EngineConfig(model=llama, blocks=BLOCKS, kvtier=config, in_process=True))
    fill(first, reference)
    assert idle(first) == CLEAN
    assert first.reset(connector=True)
    first.close()
    assert list(folder.rglob("*.kvt")), "no I/O process has heard of it"
    again = engine(EngineConfig(model=llama, blocks=BLOCKS, kvtier=config, fresh=True))
    for prompt in LONG[:2]:
        (answer,) = again.answers([prompt], TOKENS)
        assert (answer.tokens, answer.cached) == (reference.of([prompt])[0], 0)


def test_a_tier_that_was_measured_slow_is_computed_around_from_the_first_request_on(
    reference: Reference,
    engine: EngineFactory,
    llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One request at a time: the first says how fast this engine is; what the disk can do says `medium` alone."""
    folder = tmp_path_factory.mktemp("slow")
    config = nvme(folder, dram_capacity="24MiB", write="through", medium={"read": "64KiB"})
    fill(engine(EngineConfig(model=llama, blocks=BLOCKS, kvtier=config)), reference)
    made = engine(EngineConfig(model=llama, blocks=BLOCKS, kvtier={**config, "load": "auto"}))
    assert made.generate([MANY[0] * 3], 1)
    for prompt in LONG[:3]:
        (answer,) = made.answers([prompt], TOKENS)
        assert (answer.tokens, answer.cached) == (reference.of([prompt])[0], 0)
    told = made.metrics()
    assert told['kvtier:load_refusals_total{reason="too_dear"}'] == 3
    assert told.get('kvtier:tier_read_bytes_total{tier="nvme"}', 0) == 0
