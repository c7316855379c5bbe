"""Every kind of KV cache, by its bytes: whatever is read of it is what was computed, from DRAM or files, alone or at once."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)

from tests.connectors.no_model import NoModelEngine
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.modes import tiny

BLOCK = 16
_HEADS: dict[str, Any] = {
    "block_size": BLOCK,
    "num_kv_heads": 2,
    "head_size": 32,
    "dtype": torch.float32,
}
FULL = FullAttentionSpec(**_HEADS)
WINDOW = SlidingWindowSpec(**_HEADS, sliding_window=40)
WIDE = SlidingWindowSpec(**_HEADS, sliding_window=100)
LOCAL = ChunkedLocalAttentionSpec(**_HEADS, attention_chunk_size=80)
LARGE = FullAttentionSpec(**{**_HEADS, "head_size": 64})
_LATENT: dict[str, Any] = {
    "block_size": BLOCK,
    "num_kv_heads": 1,
    "head_size": 96,
    "dtype": torch.bfloat16,
}
LATENT = MLAAttentionSpec(**_LATENT)
LATENT_WINDOW = SlidingWindowMLASpec(**_LATENT, sliding_window=40)


def state(mode: str = "align", block: int = BLOCK) -> KVCacheSpec:
    """What a Mamba layer keeps: the inputs of its convolution and its state."""
    return MambaSpec(
        block_size=block,
        shapes=((3, 64), (4, 16, 8)),
        dtypes=(torch.float32, torch.float32),
        page_size_padded=FULL.page_size_bytes * block // BLOCK,
        mamba_cache_mode=mode,
    )


class Model(NamedTuple):
    """A model of that family, as its layers keep their KV."""

    family: str
    layers: tuple[KVCacheSpec, ...]
    hit: int = 192  # of 200 tokens

    @property
    def specs(self) -> dict[str, KVCacheSpec]:
        return {f"layers.{i}": spec for i, spec in enumerate(self.layers)}


MODELS = {
    "full attention": Model("llama", (FULL, FULL)),
    "heads of two sizes": Model("llama", (FULL, LARGE)),
    "windows": Model("mistral", (WINDOW, WINDOW)),
    "windows and full attention": Model("gpt-oss", (WINDOW, FULL, WINDOW, FULL)),
    "two windows": Model("gpt-oss", (WINDOW, WIDE, FULL)),
    "local attention": Model("llama4", (LOCAL, LOCAL, LOCAL, FULL)),
    "latent attention": Model("deepseek-v2", (LATENT, LATENT, LATENT)),
    "latent attention and windows": Model("deepseek-v2", (LATENT, LATENT_WINDOW)),
    "states": Model("granite", (state(), state(), FULL, state())),
    "states at every block": Model("granite", (state("all"), state("all"), FULL)),
    "states, eight to one": Model("granite", (*[state()] * 7, FULL)),
    "states alone": Model("granite", (state(), state())),
    "states and windows": Model("granite", (state(), WINDOW, FULL)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[str(request.param)]


Start = Callable[..., AbstractContextManager[NoModelEngine]]


@pytest.fixture
def start(model: Model, tmp_path: Path) -> Start:
    """Start an engine of the model; the next one finds what this one has written."""
    return partial(_start, model, tmp_path)


def _start(
    model: Model, folder: Path, *, dram: str = "4MiB", blocks: int = 128
) -> AbstractContextManager[NoModelEngine]:
    kvtier = nvme(folder / "kv", dram_capacity=dram, write="through")
    kvtier["chunk_tokens"] = 2 * BLOCK  # but one block where there are states
    made = NoModelEngine(tiny.make(folder, model.family), model.specs, kvtier, blocks=blocks)
    made.settle()
    return closing(made)


def test_from_dram_and_from_files(model: Model, start: Start) -> None:
    asked = prompts(4, 200, seed=1)
    with start() as engine:
        assert [engine.ask(prompt) for prompt in asked] == [[0]] * 4
        assert engine.ask(asked[-1]) == [model.hit], "from the device: that much can be had"
        engine.reset()
        assert [engine.ask(prompt) for prompt in asked] == [[model.hit]] * 4
        engine.reset()
        assert engine.ask(*asked) == [model.hit] * 4
        engine.settle()
    with start() as engine:
        assert [engine.ask(prompt) for prompt in asked] == [[model.hit]] * 4


@pytest.mark.parametrize("end", [192, 176])
def test_a_prompt_that_ends_with_a_chunk(model: Model, start: Start, end: int) -> None:
    """Its last token is computed again: on a state of before it."""
    (asked,) = prompts(1, 200, seed=7)
    with start() as engine:
        engine.ask(asked)
        for shorter in (end, end - 1, end + 1):
            engine.reset()
            (cached,) = engine.ask(asked[:shorter])
            assert cached < shorter
        engine.settle()
    with start() as engine:
        engine.ask(asked[:end])


def test_wrong_bytes_are_noticed(model: Model, start: Start) -> None:
    """In a group of each kind: so what was right above was right in all of them."""
    asked = prompts(2, 200, seed=2)
    with start() as engine:
        groups = enumerate(engine.cache_config.kv_cache_groups)
        kinds = {group.kv_cache_spec: index for index, group in groups}
    for group in kinds.values():
        with start() as engine:
            for prompt in asked:
                engine.ask(prompt)
            engine.reset()
            view = engine.connector.scheduling.brain.view
            arena = engine.workers[0].rank.worker.arena
            for key in view.keys(0):
                if int.from_bytes(key[-4:], "big") == group:
                    arena.slot(view.slot(key))[:64] ^= 1
            with pytest.raises(AssertionError, match=r"other KV|not the state"):
                engine.ask(asked[0])


def test_traffic_that_fits_nowhere(model: Model, start: Start) -> None:
    """Conversations that share beginnings go on and on, on a device and in a DRAM that hold a part of them."""
    rng = random.Random(3)
    said = prompts(6, 60, seed=4, shared=40)
    with start(dram="256KiB", blocks=24 * len(model.layers)) as engine:
        engine.ask(*prompts(5, 200, seed=5), tokens=60)
        assert engine.preempted or model.family != "llama"
        for turn in range(25):
            asked = [list(rng.choice(said)) for _ in range(rng.choice((1, 1, 8)))]
            asked = [prompt + [turn] * rng.randrange(1, 50) for prompt in asked]
            engine.ask(*asked, tokens=rng.choice((1, 5, 18)))
            said = [*said[-12:], *(prompt for prompt in asked if len(prompt) < 220)]
            if rng.random() < 0.2:
                engine.reset()
        engine.settle()
        brain = engine.connector.scheduling.brain
        brain.check()
        assert any(tier.hits for tier in brain.stats().tiers)


def hit_from_dram(start: Start, asked: list[list[int]]) -> None:
    """Compute four prompts, and hit each after a reset of the device's cache."""
    with start() as engine:
        assert engine.ask(*asked) == [0] * 4
        engine.reset()
        assert [engine.ask(prompt) for prompt in asked] == [[192]] * 4
        engine.settle()


def hit_after_a_restart(start: Start, asked: list[list[int]]) -> None:
    """Hit them all; what the second rank has in DRAM is then damaged, and noticed."""
    with start() as engine:
        assert engine.ask(*asked) == [192] * 4
        engine.reset()
        arena = engine.workers[1].rank.worker.arena
        for slot in range(arena.slots):
            arena.slot(slot)[:64] ^= 1
        with pytest.raises(AssertionError, match=r"1: .* other KV"):
            engine.ask(asked[0])


@pytest.mark.parametrize("pipeline", [False, True], ids=["tensor parallel", "pipeline"])
def test_two_ranks(pipeline: bool, tmp_path: Path) -> None:
    """Each rank has bytes of its own, and in a pipeline layers of its own; files of both are found after a restart."""
    specs = {f"layers.{i}": spec for i, spec in enumerate((WINDOW, FULL, WINDOW, FULL))}
    names = list(specs)
    halves = [{n: specs[n] for n in names[:2]}, {n: specs[n] for n in names[2:]}]
    kvtier = nvme(tmp_path / "kv", dram_capacity="4MiB", write="through") | {"chunk_tokens": 32}
    model, asked = tiny.make(tmp_path, "gpt-oss"), prompts(4, 200, seed=6)

    def start() -> AbstractContextManager[NoModelEngine]:
        size = {"pipeline_parallel_size" if pipeline else "tensor_parallel_size": 2}
        stages = halves if pipeline else []
        made = NoModelEngine(model, specs, kvtier, blocks=128, stages=stages, **size)
        made.settle()
        return closing(made)

    hit_from_dram(start, asked)
    assert {path.parents[1].name for path in (tmp_path / "kv").rglob("*.kvt")} == {"r0", "r1"}
    hit_after_a_restart(start, asked)


CONTEXTS: dict[str, dict[str, Any]] = {
    "decode context": {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
    "prefill context": {"prefill_context_parallel_size": 2},
    "both": {"prefill_context_parallel_size": 2, "decode_context_parallel_size": 2},
}


@pytest.mark.parametrize("sizes", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize(
    "layers", [(FULL, FULL), (LATENT, LATENT)], ids=["full attention", "latent attention"]
)
def test_ranks_that_share_a_context(
    layers: tuple[KVCacheSpec, ...],
    sizes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has every second token, or all of them; a chunk is of tokens of the sequence, and files are those of its rank."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")  # no other runner divides prompts
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)  # it is not called here
    specs = {f"layers.{i}": spec for i, spec in enumerate(layers)}
    kvtier = nvme(tmp_path / "kv", dram_capacity="4MiB", write="through") | {"chunk_tokens": 64}
    model, asked = tiny.make(tmp_path, "deepseek-v2"), prompts(4, 200, seed=8)

    def start() -> AbstractContextManager[NoModelEngine]:
        made = NoModelEngine(model, specs, kvtier, blocks=128, **sizes)
        made.settle()
        return closing(made)

    hit_from_dram(start, asked)
    hit_after_a_restart(start, asked)


@pytest.mark.parametrize("layer", [FULL, LATENT], ids=["full attention", "latent attention"])
def test_two_nodes(layer: KVCacheSpec, tmp_path: Path) -> None:
    """A rank on each, with capacities of its own; each keeps its records, also where both have the same KV."""
    if layer is LATENT and hasattr(layer, "max_tp_shards"):
        layer = replace(layer, max_tp_shards=1)
    specs = {f"layers.{i}": layer for i in range(2)}
    kvtier = nvme(tmp_path / "kv", dram_capacity="4MiB", write="through") | {"chunk_tokens": 32}
    model, asked = tiny.make(tmp_path, "deepseek-v2"), prompts(4, 200, seed=9)

    def start() -> AbstractContextManager[NoModelEngine]:
        made = NoModelEngine(model, specs, kvtier, blocks=128, tensor_parallel_size=2, nnodes=2)
        made.settle()
        return closing(made)

    with start() as engine:
        assert {worker.rank.worker.sharers.ranks for worker in engine.workers} == {1}
        assert engine.ask(*asked) == [0] * 4
        engine.settle()
    records = list((tmp_path / "kv").rglob("*.kvt"))
    assert {path.parents[1].name for path in records} == {"r0", "r1"}
    with start() as engine:
        assert engine.ask(*asked) == [192] * 4
