"""A sliding-window model: several KV-cache groups share device blocks, and each has keys of its own."""

from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.lanes import DEFAULT
from tests.engine.models import GEMMA_WINDOW, prompts
from tests.engine.scenarios import TOKENS, Reference, dram, nvme, turns

pytestmark = pytest.mark.core

BLOCKS = 90  # of 128 tokens, over all groups
LONGEST = {"max_model_len": 1536}  # asynchronously a step more of it needs room at once

CHATS = turns(5, 3, seed=31, length=500)
SHARED = prompts(1, 1024, seed=32)[0]
SHARING = [SHARED + own for own in prompts(4, 200, seed=33)]
ASKED = [prompt for turn in CHATS for prompt in turn] + SHARING


@pytest.fixture(scope="module")
def reference(engine: EngineFactory, gemma: Path) -> Reference:
    known = Reference()
    known.learn(engine(EngineConfig(model=gemma, blocks=400, lane=DEFAULT)), ASKED)
    return known


@pytest.fixture(scope="module", params=["dram", "nvme"])
def kvtier(
    request: pytest.FixtureRequest,
    reference: Reference,
    engine: EngineFactory,
    gemma: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    config = dram() if request.param == "dram" else nvme(tmp_path_factory.mktemp("nvme"))
    return engine(EngineConfig(model=gemma, blocks=BLOCKS, kvtier=config, options=LONGEST))


def test_the_window_is_shorter_than_the_chats() -> None:
    assert len(CHATS[0][0]) > GEMMA_WINDOW


def test_chats_and_their_returns(kvtier: Engine, reference: Reference) -> None:
    for turn in CHATS:
        for prompt in turn:
            assert kvtier.generate([prompt], TOKENS) == reference.of([prompt])
    for prompt in CHATS[-1]:
        (answer,) = kvtier.answers([prompt], TOKENS)
        assert answer.tokens == reference.of([prompt])[0]
    assert kvtier.metrics()["kvtier:loaded_chunks_total"] > 0


def test_all_at_once_and_a_shared_prefix(kvtier: Engine, reference: Reference) -> None:
    for _ in range(2):
        asked = CHATS[-1] + SHARING
        assert kvtier.generate(asked, TOKENS) == reference.of(asked)


def test_the_first_request_of_an_engine_s_life_is_stored_with_its_windows(
    reference: Reference, engine: EngineFactory, gemma: Path
) -> None:
    """In one process nobody steps the engine before it comes, and window groups are offered only once."""
    config = EngineConfig(
        model=gemma, blocks=BLOCKS, kvtier=dram(), in_process=True, options=LONGEST
    )
    made = engine(config)
    first = CHATS[-1][0]
    assert made.generate([first], TOKENS) == reference.of([first])
    assert made.reset()  # of the device only
    (answer,) = made.answers([first], TOKENS)
    assert answer.tokens == reference.of([first])[0]
    assert answer.cached >= 1024
