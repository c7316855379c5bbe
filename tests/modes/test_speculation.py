"""Speculative decoding: what is drafted changes how fast an answer comes, and never the answer."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from kvtier.demo.model import LlamaShape, build
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig
from tests.engine.models import LLAMA, prompts
from tests.engine.scenarios import TOKENS, nvme
from tests.modes import tiny
from tests.modes.identity import Mode, check, rest

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ngram": ("", {"prompt_lookup_max": 3, "prompt_lookup_min": 1}),
    "eagle": ("eagle", {}),
    "eagle3": ("eagle3", {}),
    "draft_model": ("draft", {}),
    "mtp": ("", {}),
}


@pytest.mark.parametrize("method", METHODS)
def test_method(method: str, engine: EngineFactory, tmp_path: Path) -> None:
    draft, options = METHODS[method]
    speculative = {"method": method, "num_speculative_tokens": 1 if method == "mtp" else 3}
    if draft:
        speculative["model"] = str(tiny.make(tmp_path, draft))
    mode = Mode(options={"speculative_config": speculative | options})
    check(
        engine, mode, tiny.make(tmp_path, "mimo" if method == "mtp" else "llama"), tmp_path / "kv"
    )


def test_a_draft_with_other_weights_finds_the_records_and_answers_right(
    engine: EngineFactory, llama: Path, tmp_path: Path
) -> None:
    """The draft's KV lies in the records too, of the old weights: they are what the drafts are worse for."""
    shape = LlamaShape(
        layers=2,
        hidden=LLAMA.hidden,
        heads=LLAMA.heads,
        kv_heads=LLAMA.kv_heads,
        intermediate=LLAMA.intermediate,
        vocab=LLAMA.vocab,
    )
    asked = prompts(3, 700, seed=15)
    right = engine(EngineConfig(model=llama)).generate(asked, TOKENS)
    speculative = {
        "method": "draft_model",
        "model": str(tmp_path / "draft"),
        "num_speculative_tokens": 3,
    }
    config = EngineConfig(
        model=llama,
        kvtier=nvme(tmp_path / "kv", write="through") | {"chunk_tokens": 128},
        in_process=True,
        options={"speculative_config": speculative},
    )
    for seed, cached in ((1, 0), (2, 640)):
        rmtree(tmp_path / "draft", ignore_errors=True)
        build(tmp_path / "draft", shape, seed)
        running = engine(config)
        running.call("tests.engine.faults:settle")
        for prompt, tokens in zip(asked, right, strict=True):
            (answer,) = running.answers([prompt], TOKENS)
            assert (answer.tokens, answer.cached) == (tokens, cached)
        rest(running)
        running.close()
