"""A model whose KV must not be reused runs with kvtier configured as it runs without: kvtier is off, and says why."""

from pathlib import Path

import pytest

from tests.engine import models
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import dram

POOLING = {"runner": "pooling", "max_num_batched_tokens": 4096}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.bert(tmp_path_factory.mktemp("models"))


def off(log: Path) -> list[str]:
    """What kvtier says about itself."""
    return [line for line in log.read_text().splitlines() if "kvtier is off" in line]


def embeds_as_alone(engine: EngineFactory, config: EngineConfig, asked: list[list[int]]) -> str:
    """Embed twice, alone and with kvtier, and return kvtier's one line."""
    alone = engine(config).call("tests.engine.inside:embed", asked)
    kvtier = engine(EngineConfig(model=config.model, options=config.options, kvtier=dram()))
    for _ in range(2):
        got = kvtier.call("tests.engine.inside:embed", asked)
        assert [pytest.approx(each, rel=1e-3, abs=1e-4) for each in alone] == got
        kvtier.reset()  # what the device has it would not ask for
    metrics = kvtier.metrics()
    assert metrics["kvtier:off"] == 1
    assert metrics['kvtier:load_refusals_total{reason="off"}'] == 2 * len(asked)
    (line,) = off(kvtier.log)
    return line


def test_a_model_without_kv_starts_and_embeds(engine: EngineFactory, bert: Path) -> None:
    options = POOLING | {"max_model_len": 512, "load_format": "dummy"}
    said = embeds_as_alone(engine, EngineConfig(model=bert, options=options), prompts(2, 100))
    assert "the model has no KV cache" in said


def test_equal_requests_for_a_mean_over_all_tokens(engine: EngineFactory, llama: Path) -> None:
    options = POOLING | {"pooler_config": {"seq_pooling_type": "MEAN"}}
    said = embeds_as_alone(engine, EngineConfig(model=llama, options=options), prompts(1, 600))
    assert "MEAN pooling" in said


def test_who_switches_prefix_caching_off_keeps_kvtier(engine: EngineFactory, llama: Path) -> None:
    (prompt,) = prompts(1, 600)
    config = EngineConfig(model=llama, kvtier=dram(), options={"enable_prefix_caching": False})
    running = engine(config)
    first, again = (running.answers([prompt]) for _ in range(2))
    assert [answer.tokens for answer in first] == [answer.tokens for answer in again]
    assert again[0].cached == 512
    assert not off(running.log)
