"""What a request may ask for, and what an engine may be told, besides its model."""

from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine
from tests.engine.models import prompts
from tests.modes import tiny
from tests.modes.identity import Ask, Mode, Told, check

ENGINES = {
    "chunked prefill off": Mode(
        options={"enable_chunked_prefill": False, "max_num_batched_tokens": 2304}
    ),
    "fp8 KV": Mode(options={"kv_cache_dtype": "fp8"}),
    "compiled": Mode(options={"enforce_eager": False}),
}


def question(name: str, *args: object) -> Ask:
    """One of those in `inside`."""

    def ask(running: Engine) -> Told:
        pairs = running.call(f"tests.modes.inside:{name}", *args)
        return Told([said for said, _ in pairs], [cached for _, cached in pairs])

    return ask


@pytest.mark.parametrize("name", ENGINES)
def test_engine(name: str, engine: EngineFactory, tmp_path: Path) -> None:
    check(engine, ENGINES[name], tiny.make(tmp_path, "llama"), tmp_path / "kv")


def test_ways_to_ask(engine: EngineFactory, tmp_path: Path) -> None:
    """Several answers, logprobs, a grammar, equal prompts, salts, beams, priorities that preempt, embeddings."""
    many, ranked, embedded = (
        question("in_many_ways", prompts(6, 600, seed=5), 10),
        question("by_priority", prompts(12, 5 * 128 + 120, seed=11), 20),
        question("embedded", [600, 700], 10),
    )

    def ask(running: Engine) -> Told:
        told = [one(running) for one in (many, ranked, embedded)]
        return Told([each.answers for each in told], [n for each in told for n in each.cached])

    mode = Mode(options={"scheduling_policy": "priority", "enable_prompt_embeds": True})
    model = tiny.make(tmp_path, "llama")
    check(engine, mode, model, tmp_path / "kv", ask)
    metrics = engine(mode.below(model, tmp_path / "kv")).metrics()
    assert metrics["vllm:num_preemptions_total"] > 0
    assert metrics["kvtier:loaded_chunks_total"] > 0


def test_pooling_of_the_last_token(engine: EngineFactory, tmp_path: Path) -> None:
    """Its vector comes of KV that was loaded."""
    ask = question("pooled", prompts(3, 600, seed=13), "embed")
    mode = Mode(options={"runner": "pooling"})
    check(engine, mode, tiny.make(tmp_path, "qwen3"), tmp_path / "kv", ask)
