"""What a request may ask for, and what an engine may be told, besides its model."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine
from tests.engine.models import prompts
from tests.engine.test_adapters import write_adapter
from tests.modes import tiny
from tests.modes.identity import Mode, Told, check, rest

INSIDE = "tests.modes.inside"

ENGINES = {
    "prefix caching off": Mode(options={"enable_prefix_caching": False}, hit=512),
    "chunked prefill off": Mode(
        options={"enable_chunked_prefill": False, "max_num_batched_tokens": 2304}
    ),
    "fp8 KV": Mode(options={"kv_cache_dtype": "fp8"}),
    "compiled": Mode(options={"enforce_eager": False}),
}


def told(running: Engine, question: str, *args: object) -> Told:
    """Ask a question of `inside`."""
    pairs = running.call(f"{INSIDE}:{question}", *args)
    return Told([said for said, _ in pairs], [cached for _, cached in pairs])


def question(name: str, *args: object) -> Any:
    """Make one that `check` can ask."""
    return partial(_put, name, args)


def _put(name: str, args: tuple[object, ...], running: Engine) -> Told:
    return told(running, name, *args)


@pytest.mark.parametrize("name", ENGINES)
def test_engine(name: str, engine: EngineFactory, tmp_path: Path) -> None:
    check(engine, ENGINES[name], tiny.make(tmp_path, "llama"), tmp_path / "kv")


def test_ways_to_ask(engine: EngineFactory, tmp_path: Path) -> None:
    asked = question("in_many_ways", prompts(5, 600, seed=5), 10)
    check(engine, Mode(), tiny.make(tmp_path, "llama"), tmp_path / "kv", asked)


def test_beams(engine: EngineFactory, tmp_path: Path) -> None:
    asked = question("beams", prompts(2, 600, seed=6), 5)
    check(engine, Mode(), tiny.make(tmp_path, "llama"), tmp_path / "kv", asked)


def test_priorities_that_preempt(engine: EngineFactory, tmp_path: Path) -> None:
    mode = Mode(options={"scheduling_policy": "priority"}, blocks=24)
    model, asked = tiny.make(tmp_path, "llama"), prompts(6, 700, seed=11)
    right = told(engine(mode.alone(model)), "by_priority", asked, 100).answers
    running = engine(mode.below(model, tmp_path / "kv"))
    for _ in range(3):
        assert told(running, "by_priority", asked, 100).answers == right
        rest(running)
    metrics = running.metrics()
    assert metrics["vllm:num_preemptions_total"] > 0
    assert metrics["kvtier:loads_total"] > 0


def test_prompts_that_are_embeddings(engine: EngineFactory, tmp_path: Path) -> None:
    mode = Mode(options={"enable_prompt_embeds": True})
    asked = question("embedded", [600, 700], 10)
    check(engine, mode, tiny.make(tmp_path, "llama"), tmp_path / "kv", asked)


def test_an_adapter(engine: EngineFactory, llama: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", seed=1)
    mode = Mode(
        options={"enable_lora": True, "max_lora_rank": 8, "max_loras": 2},
        kvtier={"persist_lora": True},
    )
    asked = question("adapted", prompts(2, 600, seed=12), str(tmp_path / "adapter"), 10)
    check(engine, mode, llama, tmp_path / "kv", asked)


@pytest.mark.parametrize("task", ["embed", "token_embed"])
def test_pooling(task: str, engine: EngineFactory, tmp_path: Path) -> None:
    """The last token's vector comes from KV that was loaded; where every token's is asked for, all are computed."""
    mode = Mode(options={"runner": "pooling"})
    asked = question("pooled", prompts(3, 600, seed=13), task)
    check(engine, mode, tiny.make(tmp_path, "qwen3"), tmp_path / "kv", asked)


IMAGES = Mode(options={"limit_mm_per_prompt": {"image": 1}})


def test_images(engine: EngineFactory, tmp_path: Path) -> None:
    asked = question("about_images", prompts(1, 600, seed=21)[0], [1, 2], 10)
    check(engine, IMAGES, tiny.make(tmp_path, "blip2"), tmp_path / "kv", asked)


def test_images_that_vllm_counts_are_not_mixed_over_a_restart(
    engine: EngineFactory, tmp_path: Path
) -> None:
    """In each life of such a server, vLLM names the first image alike."""
    counted = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
    mode = replace(IMAGES, options={**IMAGES.options, **counted})
    model, (prompt,) = tiny.make(tmp_path, "blip2"), prompts(1, 600, seed=21)

    def ask(running: Engine, seed: int) -> Told:
        return told(running, "about_images", prompt, [seed], 10)

    alone = engine(mode.alone(model))
    first, second = ask(alone, 1), ask(alone, 2)
    assert first != second
    for seed, right in ((1, first), (2, second)):
        running = engine(mode.below(model, tmp_path / "kv"))
        running.call("tests.engine.faults:settle")
        assert ask(running, seed) == right
        running.call("tests.engine.inside:idle")
        running.close()
