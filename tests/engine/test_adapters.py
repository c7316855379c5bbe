"""A LoRA adapter that is read again from its path, as it was or with other weights, and a reset of the device's cache alone."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig
from tests.engine.models import LLAMA, prompts
from tests.engine.scenarios import TOKENS, nvme

PROMPT = prompts(1, 1100, seed=95)[0]
INSIDE = "tests.engine.inside"
LONELY = {"store": False, "load": False}


def write_adapter(path: Path, seed: int) -> None:
    """Write an adapter of the small Llama's attention."""
    path.mkdir(exist_ok=True)
    rng, tensors = np.random.default_rng(seed), {}
    head = LLAMA.hidden // LLAMA.heads
    for layer in range(LLAMA.layers):
        for name, rows in (("q", LLAMA.heads), ("k", LLAMA.kv_heads), ("v", LLAMA.kv_heads)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj"
            a, b = rng.standard_normal((8, LLAMA.hidden)), rng.standard_normal((rows * head, 8))
            tensors[f"{at}.lora_A.weight"] = (a / 11).astype(np.float32)
            tensors[f"{at}.lora_B.weight"] = (b / 3).astype(np.float32)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "llama",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "bias": "none",
    }
    (path / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("by_request", [False, True])
def test_an_adapter_loaded_in_place_hits_nothing_of_the_old_one(
    engine: EngineFactory, llama: Path, tmp_path: Path, by_request: bool
) -> None:
    config = EngineConfig(
        model=llama,
        kvtier=nvme(tmp_path / "kv") | {"chunk_tokens": 128},
        in_process=True,
        options={"enable_lora": True, "max_lora_rank": 8, "max_loras": 2},
    )
    running, path = engine(config), tmp_path / "adapter"

    def ask(*, in_place: bool = False, **hints: bool) -> tuple[list[int], int]:
        assert running.reset()  # the device's cache alone
        given = (PROMPT, str(path), in_place, hints, TOKENS)
        tokens, cached = running.call(f"{INSIDE}:adapted", *given)
        running.call(f"{INSIDE}:idle")
        return tokens, cached

    write_adapter(path, seed=1)
    old, _ = ask()
    assert ask() == (old, 1024)
    write_adapter(path, seed=2)
    if not by_request:
        assert running.call(f"{INSIDE}:load_in_place", str(path))
    new, cached = ask(in_place=by_request)
    assert cached == 0
    assert ask(**LONELY) == (new, 0)
    assert new != old
    assert ask() == (new, 0), "not kept until the whole cache is reset"
    assert running.reset(connector=True)
    assert ask() == (new, 0)
    assert ask() == (new, 1024)
    ask(in_place=True)  # it may have been read when it was just written
    for _ in range(2):
        assert ask(in_place=True) == (new, 1024), "read again, and as it was"


def test_an_adapter_that_was_dropped_for_another_and_is_read_again(
    engine: EngineFactory, llama: Path, tmp_path: Path
) -> None:
    config = EngineConfig(
        model=llama,
        kvtier=nvme(tmp_path / "kv") | {"chunk_tokens": 128},
        in_process=True,
        options={"enable_lora": True, "max_lora_rank": 8, "max_loras": 1, "max_cpu_loras": 1},
    )
    running, paths = engine(config), [tmp_path / "a", tmp_path / "b"]

    def ask(number: int) -> tuple[list[int], int]:
        assert running.reset()
        path = str(paths[number - 1])
        tokens, cached = running.call(f"{INSIDE}:adapted", PROMPT, path, False, {}, TOKENS, number)
        running.call(f"{INSIDE}:idle")
        return tokens, cached

    for seed, path in enumerate(paths, 1):
        write_adapter(path, seed)
    time.sleep(0.2)  # what was just written may be changing, and is not known again
    first, second = ask(1), ask(2)
    assert first[0] != second[0]
    assert (first[1], second[1]) == (0, 0)
    assert ask(1) == (first[0], 1024)
    assert ask(2) == (second[0], 1024)
    write_adapter(paths[0], seed=3)
    for _ in range(2):
        tokens, cached = ask(1)
        assert cached == 0
        assert tokens != first[0]
    assert ask(2) == (second[0], 1024)
