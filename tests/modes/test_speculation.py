"""Speculative decoding: what is drafted changes how fast an answer comes, and never the answer."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from kvtier.demo.model import build
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig
from tests.engine.models import LLAMA, prompts
from tests.engine.scenarios import TOKENS, nvme
from tests.modes import tiny
from tests.modes.identity import Mode, assert_alike, check, told

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ngram": ("llama", {"prompt_lookup_max": 3, "prompt_lookup_min": 1}),
    "eagle": ("llama", {}),
    "mtp": ("mimo", {}),
    "suffix": ("llama", {}),
}


@pytest.mark.parametrize("method", METHODS)
def test_method(method: str, engine: EngineFactory, tmp_path: Path) -> None:
    if method == "suffix":
        pytest.importorskip("arctic_inference.suffix_decoding")  # which vLLM does not come with
    model, options = METHODS[method]
    speculative = {"method": method, "num_speculative_tokens": 1 if method == "mtp" else 3}
    if method == "eagle":
        speculative["model"] = str(tiny.make(tmp_path, method))
    mode = Mode(
        options={"speculative_config": speculative | options},
        hit=512,  # of drafts that need the model's own states, vLLM drops its last cached block
    )
    check(engine, mode, tiny.make(tmp_path, model), tmp_path / "kv")


def test_a_draft_with_other_weights_finds_the_records_and_answers_right(
    engine: EngineFactory, llama: Path, tmp_path: Path
) -> None:
    """The old draft's KV lies in the records too: the new one guesses worse by it, and the model checks each guess."""
    asked = prompts(3, 700, seed=15)
    draft = tmp_path / "draft"
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 3}
    config = EngineConfig(model=llama, in_process=True, options={"speculative_config": speculative})
    build(draft, replace(LLAMA, layers=2), 1)
    alone = engine(config)
    cold, own = told(alone, asked, TOKENS), told(alone, asked, TOKENS)
    assert all(own.cached)
    below = {**nvme(tmp_path / "kv", write="through"), "chunk_tokens": 128}
    for seed, right in ((1, cold), (2, own)):
        rmtree(draft)
        build(draft, replace(LLAMA, layers=2), seed)
        running = engine(replace(config, kvtier=below))
        running.call("tests.engine.faults:settle")
        assert_alike(told(running, asked, TOKENS), right)
        running.call("tests.engine.inside:idle")
        running.close()
