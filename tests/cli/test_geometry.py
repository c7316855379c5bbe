"""KV bytes of known models, from the fields that their config.json has."""

import json
from pathlib import Path

import pytest

from kvtier.cli.geometry import Geometry, read_geometry
from kvtier.errors import ConfigError

LLAMA_8B: dict[str, object] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "dtype": "bfloat16",
}
DEEPSEEK_V3: dict[str, object] = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "torch_dtype": "bfloat16",
}
GEMMA_3: dict[str, object] = {
    "text_config": {
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
    "torch_dtype": "bfloat16",
}


def geometry(tmp_path: Path, raw: object, *, ranks: int = 1, dtype: str = "auto") -> Geometry:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return read_geometry(tmp_path, ranks=ranks, dtype=dtype)


def test_grouped_heads_are_shared_among_the_ranks(tmp_path: Path) -> None:
    assert geometry(tmp_path, LLAMA_8B).nbytes_per_token == 128 << 10
    assert geometry(tmp_path, LLAMA_8B, ranks=8).nbytes_per_token == 16 << 10
    assert geometry(tmp_path, LLAMA_8B, ranks=16).nbytes_per_token == 16 << 10


def test_every_head_its_own(tmp_path: Path) -> None:
    mha = {**LLAMA_8B, "num_key_value_heads": None}
    assert geometry(tmp_path, mha).nbytes_per_token == 512 << 10
    assert geometry(tmp_path, mha).attention.startswith("MHA")


def test_a_latent_is_whole_on_every_rank(tmp_path: Path) -> None:
    assert geometry(tmp_path, DEEPSEEK_V3).nbytes_per_token == 61 * 576 * 2
    assert geometry(tmp_path, DEEPSEEK_V3, ranks=8).nbytes_per_token == 61 * 576 * 2


def test_windows_make_groups(tmp_path: Path) -> None:
    gemma = geometry(tmp_path, GEMMA_3)
    assert dict(gemma.groups) == {"sliding_attention": 6, "full_attention": 1}
    assert (gemma.group_layers, gemma.full_groups, gemma.window) == (5, 1, 1024)


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    qwen = {**LLAMA_8B, "sliding_window": 4096, "use_sliding_window": False}
    assert geometry(tmp_path, qwen).groups == (("full_attention", 1),)
    assert geometry(tmp_path, qwen).window is None


@pytest.mark.parametrize(
    ("dtype", "nbytes"), [("auto", 128 << 10), ("fp8", 64 << 10), ("float32", 256 << 10)]
)
def test_the_dtype_of_the_cache_counts(tmp_path: Path, dtype: str, nbytes: int) -> None:
    assert geometry(tmp_path, LLAMA_8B, dtype=dtype).nbytes_per_token == nbytes


def test_a_float32_checkpoint_is_served_in_16_bits(tmp_path: Path) -> None:
    assert geometry(tmp_path, {**LLAMA_8B, "dtype": "float32"}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "not a model's config.json"),
        ({}, "no attention layers"),
        ({**LLAMA_8B, "layer_types": ["linear_attention"] * 32}, "layers of kind linear_attention"),
        ({**LLAMA_8B, "num_attention_heads": 0}, "no attention layers.*num_attention_heads"),
        ({**LLAMA_8B, "num_hidden_layers": 0}, "no attention layers.*num_hidden_layers"),
        ({**LLAMA_8B, "layer_types": []}, "no attention layers.*num_hidden_layers"),
        ({**LLAMA_8B, "head_dim": 0, "hidden_size": 2}, "no attention layers.*head_dim"),
        ({**LLAMA_8B, "dtype": "int3"}, "'int3' is not a KV-cache dtype"),
    ],
)
def test_what_has_no_figure_is_refused(tmp_path: Path, raw: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        geometry(tmp_path, raw)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_geometry(tmp_path / "nowhere", ranks=1)


def test_ranks_that_cannot_share_the_heads_are_refused(tmp_path: Path) -> None:
    for raw in (LLAMA_8B, DEEPSEEK_V3):
        with pytest.raises(ConfigError, match=r"3 ranks cannot share .* attention heads evenly"):
            geometry(tmp_path, raw, ranks=3)


def test_a_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    snapshot = tmp_path / "models--meta--llama" / "snapshots" / "abc"
    (tmp_path / "models--meta--llama" / "refs").mkdir(parents=True)
    (tmp_path / "models--meta--llama" / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA_8B))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert read_geometry(Path("meta/llama"), ranks=1).nbytes_per_token == 128 << 10
    with pytest.raises(ConfigError, match=r"hf download meta/other config\.json"):
        read_geometry(Path("meta/other"), ranks=1)


def test_a_file_that_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read_geometry(tmp_path / "none", ranks=1)
    assert str(raised.value).endswith("model's config.json: No such file or directory")
