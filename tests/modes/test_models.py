"""Families of models: attention of every kind, experts, and states in place of attention."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.modes import tiny
from tests.modes.identity import Mode, check

_AUTO = Mode(kvtier={"chunk_tokens": "auto"})  # two blocks of such small models
_STATES = Mode(
    options={"mamba_cache_mode": "align", "max_model_len": 4096}, length=1200, blocks=100
)

FAMILIES = {
    "llama": _AUTO,
    "mixtral": Mode(),
    "qwen3-moe": Mode(),
    "mistral": _AUTO,
    "gpt-oss": _AUTO,
    "llama4": Mode(  # the hit ends inside a piece of its local attention: only then is any of that loaded
        env={"VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1"}, length=700
    ),
    "lfm2": replace(_STATES, as_one=False, length=1153),  # its states say little beyond the next two tokens
    "qwen3-next": replace(_STATES, options={**_STATES.options, "dtype": "bfloat16"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, engine: EngineFactory, tmp_path: Path) -> None:
    check(engine, FAMILIES[family], tiny.make(tmp_path, family), tmp_path / "kv")
