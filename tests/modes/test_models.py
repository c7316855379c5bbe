"""Families of models: attention of several kinds, experts, and states in place of attention."""

from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.modes import tiny
from tests.modes.identity import Mode, check

LATENT = Mode(  # in bfloat16 AMX has kernels for it; what is computed at once is rounded otherwise
    options={"dtype": "bfloat16"}, as_one=False
)

FAMILIES = {
    "deepseek-v2": LATENT,
    "deepseek-v3": LATENT,
    "mixtral": Mode(),
    "qwen3-moe": Mode(),
    "mistral": Mode(kvtier={"chunk_tokens": "auto"}),
    "gpt-oss": Mode(kvtier={"chunk_tokens": "auto"}),
    "llama4": Mode(  # the hit ends inside a piece of its local attention: only then is any of that loaded
        env={"VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1"}, length=700
    ),
    "lfm2": Mode(  # a state of its convolutions says nothing beyond the next two tokens
        options={"mamba_cache_mode": "align", "max_model_len": 4096},
        length=1153,
        blocks=100,
        as_one=False,
    ),
    "qwen3-next": Mode(
        options={"mamba_cache_mode": "align", "max_model_len": 4096, "dtype": "bfloat16"},
        length=1200,
        blocks=100,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, engine: EngineFactory, tmp_path: Path) -> None:
    if FAMILIES[family] is LATENT and not has_amx():
        pytest.skip("vLLM has kernels for latent attention over a cached prefix for AMX only")
    check(engine, FAMILIES[family], tiny.make(tmp_path, family), tmp_path / "kv")


def has_amx() -> bool:
    """Whether this processor multiplies matrices in bfloat16."""
    return "amx_bf16" in Path("/proc/cpuinfo").read_text()
