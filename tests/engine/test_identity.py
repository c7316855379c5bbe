"""Greedy output with kvtier is vLLM's own, token for token, wherever the KV comes from."""

from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference, dram, nvme, turns

pytestmark = pytest.mark.core

BLOCKS = 24  # of 128 tokens: about two long prompts

CHATS = turns(6, 3, seed=11)
SHARED = prompts(1, 1024, seed=21)[0]
SHARING = [SHARED + own for own in prompts(6, 200, seed=22)]
ASKED_OF_LLAMA = [prompt for turn in CHATS for prompt in turn] + SHARING


@pytest.fixture(scope="module", params=["dram", "nvme", "dram-tp2"])
def kvtier(
    request: pytest.FixtureRequest,
    reference: Reference,
    engine: EngineFactory,
    llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    config = dram() if request.param != "nvme" else nvme(tmp_path_factory.mktemp("nvme"))
    tp = 2 if request.param == "dram-tp2" else 1
    return engine(EngineConfig(model=llama, blocks=BLOCKS, kvtier=config, tp=tp))


def test_chats_one_at_a_time(kvtier: Engine, reference: Reference) -> None:
    for turn in CHATS:
        for prompt in turn:
            assert kvtier.generate([prompt], TOKENS) == reference.of([prompt])


def test_chats_again_come_from_below_the_device(kvtier: Engine, reference: Reference) -> None:
    before = kvtier.metrics()["kvtier:loaded_chunks_total"]
    for prompt in CHATS[-1]:
        (answer,) = kvtier.answers([prompt], TOKENS)
        assert answer.tokens == reference.of([prompt])[0]
        assert answer.cached >= 1024
    assert kvtier.metrics()["kvtier:loaded_chunks_total"] > before


def test_eight_at_once_under_memory_pressure(kvtier: Engine, reference: Reference) -> None:
    for _ in range(2):
        asked = CHATS[-1] + CHATS[0][:2]
        assert kvtier.generate(asked, TOKENS) == reference.of(asked)


def test_a_prefix_that_many_share(kvtier: Engine, reference: Reference) -> None:
    for _ in range(2):
        assert kvtier.generate(SHARING, TOKENS) == reference.of(SHARING)
