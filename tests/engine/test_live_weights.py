"""Weights that are changed in a running engine, with any reset and with none: what was stored before is not used."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.connectors.vllm.looks import PERIOD_S
from tests.engine.conftest import EngineFactory
from tests.engine.faults import FILLER
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, nvme
from tests.patience import until

INSIDE = "tests.engine.inside"
PROMPT = prompts(1, 660, seed=97)[0]
COMPUTED, STORED = 0, 640  # tokens of it that are cached
NOTICED = "weights were changed in place"


@pytest.fixture(scope="module")
def config(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = tmp_path_factory.mktemp("live")
    return EngineConfig(
        model=llama,
        blocks=40,
        kvtier=nvme(folder, write="through") | {"chunk_tokens": 128},
        in_process=True,
        env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
    )


class Told:
    """What an engine tells of changes since this was made."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.before = self.all()

    def all(self) -> tuple[int, int]:
        """How many changes were counted, and how many lines of the log tell one."""
        counted = int(self.engine.metrics().get("kvtier:weight_changes_total", 0))
        return counted, self.engine.log.read_text(errors="replace").count(NOTICED)

    def new(self) -> tuple[int, int]:
        self.engine.generate([FILLER], 1)  # metrics follow at the next step
        (a, b), (counted, lines) = self.before, self.all()
        return counted - a, lines - b


@pytest.fixture
def running(engine: EngineFactory, config: EngineConfig) -> Iterator[Engine]:
    """An engine that has stored a prompt, and afterwards has the weights of the start."""
    made = engine(config)
    made.call("tests.engine.faults:settle")
    ask(made)
    assert made.reset()
    assert ask(made)[1] == STORED
    assert made.reset()
    yield made
    if made.process.poll() is None:
        made.call(f"{INSIDE}:scale_weights", 2.0)
        assert made.reset(connector=True)


def ask(engine: Engine) -> tuple[list[int], int]:
    """Ask the prompt, and wait for what is stored: the answer, and how many tokens were cached."""
    (answer,) = engine.answers([PROMPT], TOKENS)
    if engine.config.in_process:
        engine.call(f"{INSIDE}:idle")
    return answer.tokens, answer.cached


def alone(engine: Engine) -> list[int]:
    """Answer as the weights are now, without kvtier and what the device has cached."""
    assert engine.reset()
    hints = {"kvtier": {"store": False, "load": False}}
    ((tokens, cached),) = engine.call(f"{INSIDE}:hinted", [PROMPT], hints, TOKENS)
    assert cached == 0
    assert engine.reset()
    return list(tokens)


@pytest.mark.parametrize("how", ["scale_weights", "scale_unheard"])
def test_the_device_s_cache_alone_is_reset(running: Engine, how: str) -> None:
    told, old = Told(running), alone(running)
    running.call(f"{INSIDE}:{how}", 0.5)
    assert running.reset()
    new, cached = ask(running)
    assert cached == COMPUTED
    assert running.reset()
    assert ask(running) == (new, STORED), "it is stored again"
    assert new == alone(running) != old
    assert told.new() == (1, 1)


def test_nothing_is_reset_and_the_engine_is_called(running: Engine) -> None:
    told = Told(running)
    running.generate([FILLER], 1)  # the device's cache is not empty when weights change
    running.call(f"{INSIDE}:scale_weights", 0.5)
    _, cached = ask(running)
    assert cached == COMPUTED
    assert told.new() == (1, 1)
    assert running.reset()
    assert ask(running)[1] == COMPUTED, "what the device had cached may be of before"
    assert running.reset()
    assert ask(running) == (alone(running), STORED)
    assert told.new() == (1, 1)


def test_nobody_says_anything(running: Engine) -> None:
    told, began = Told(running), time.monotonic()
    running.call(f"{INSIDE}:scale_unheard", 0.5)
    until(lambda: told.new() == (1, 1), "the change is noticed")
    assert time.monotonic() - began < 2 * PERIOD_S
    assert running.reset()
    assert ask(running) == (alone(running), COMPUTED)


@pytest.mark.parametrize("level", [1, 2])
def test_sleep(running: Engine, level: int) -> None:
    told = Told(running)
    running.sleep(level)
    running.wake_up()
    assert ask(running)[1] == COMPUTED
    assert running.reset()
    assert ask(running) == (alone(running), STORED)
    running.sleep(level)
    running.wake_up()
    running.call(f"{INSIDE}:scale_weights", 0.5)
    assert ask(running)[1] == COMPUTED
    assert running.reset()
    assert ask(running) == (alone(running), STORED)
    assert told.new() == (0, 0), "sleep has reset it before"


def test_after_a_restart_nothing_of_changed_weights_is_found(
    running: Engine, engine: EngineFactory, config: EngineConfig
) -> None:
    old = alone(running)
    running.call(f"{INSIDE}:scale_weights", 0.5)
    for _ in range(2):
        assert running.reset()
        new, _ = ask(running)
    assert new != old
    running.close()
    again = engine(config)
    again.call("tests.engine.faults:settle")
    assert ask(again) == (old, COMPUTED)


def test_weights_that_come_before_the_first_step_are_not_those_of_the_files(
    engine: EngineFactory, config: EngineConfig, tmp_path: Path
) -> None:
    kvtier = nvme(tmp_path, write="through") | {"chunk_tokens": 128}
    config = replace(config, kvtier=kvtier)  # an engine that has not run yet
    first = engine(config)
    first.call(f"{INSIDE}:scale_unheard", 0.5)
    for _ in range(2):  # during the first answer the change is noticed
        new, _ = ask(first)
        assert first.reset()
    assert ask(first) == (new, STORED)
    first.close()
    again = engine(config)
    again.call("tests.engine.faults:settle")
    old, cached = ask(again)
    assert cached == COMPUTED
    assert old != new


def test_one_rank_of_two(engine: EngineFactory, llama: Path) -> None:
    tiers = [{"name": "dram", "kind": "dram", "capacity": "64MiB"}]
    made = engine(
        EngineConfig(
            model=llama,
            kvtier={"chunk_tokens": 128, "tiers": tiers},
            tp=2,
            env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
        )
    )
    told, (old, _) = Told(made), ask(made)
    assert made.reset()
    assert ask(made) == (old, STORED)
    assert made.call(f"{INSIDE}:scale_on_rank", 1, 0.5) == [0, 4]
    assert made.reset()
    new, cached = ask(made)
    assert cached == COMPUTED
    assert new != old
    assert made.reset()
    assert ask(made) == (new, STORED)
    assert told.new() == (1, 1)
    assert "(on rank 1)" in made.log.read_text(errors="replace")
