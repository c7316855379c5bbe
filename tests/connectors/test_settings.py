"""What may stand beside `kvtier` in vLLM's `kv_connector_extra_config`."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.core.kv_cache_utils import resolve_dcp_kv_block_size
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

from kvtier.chunking import ChunkSize
from kvtier.config import load
from kvtier.connectors.vllm.settings import (
    blocks_per_chunk,
    chunk_size,
    name_spec,
    refuse_foreign_keys,
    settle,
)
from kvtier.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("kvteir", "unknown key (did you mean 'kvtier'?)"),
        ("tiers", "unknown key (did you mean 'kvtier'?); what is kvtier's goes into"),
        ("cpu_bytes_to_use", "unknown key; what is kvtier's goes into"),
        ("canonical_layout", "not supported by kvtier"),
    ],
)
def test_a_key_that_nobody_would_read_is_refused(key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_foreign_keys({"kvtier": "kvtier.yaml", key: 1})
    assert str(caught.value).startswith(f"kv_connector_extra_config.{key}: {words}")


def test_what_we_set_ourselves_is_known_when_the_next_process_looks() -> None:
    extra = {"kvtier": {}, "offload_prompt_only": False, "blocks_per_chunk": 2}
    name_spec(extra)
    refuse_foreign_keys({**extra, "self_describing_kv_events": True})


def test_an_option_that_follows_from_ours_is_not_overruled_in_silence() -> None:
    extra: dict[str, object] = {}
    settle(extra, "blocks_per_chunk", 2, "chunk_tokens")
    settle(extra, "blocks_per_chunk", 2, "chunk_tokens")  # another process of the same start
    assert extra == {"blocks_per_chunk": 2}
    with pytest.raises(ConfigError, match=r"blocks_per_chunk: .* set chunk_tokens"):
        settle(extra, "blocks_per_chunk", 4, "chunk_tokens")


FULL = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
WINDOW = SlidingWindowSpec(
    block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16, sliding_window=1024
)
STATES = MambaSpec(block_size=16, shapes=((4, 4),), dtypes=(torch.float32,))
DRAM = load({"tiers": [{"kind": "dram", "capacity": "16GiB"}]})


def tokens(
    *specs: Any,
    layer_types: list[str] | None = None,
    config: Any = None,
    ranks: int = 1,
    retention: int | None = None,
    dcp: int = 1,
) -> ChunkSize:
    """Size the chunks of a model with 32 layers and 128 KiB of KV per token."""
    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.bfloat16,
            use_mla=False,
            get_num_kv_heads=lambda parallel: 8,
            get_head_size=lambda: 128,
            get_total_num_hidden_layers=lambda: 32,
            hf_text_config=SimpleNamespace(layer_types=layer_types),
        ),
        parallel_config=SimpleNamespace(
            world_size=ranks, pipeline_parallel_size=1, decode_context_parallel_size=dcp
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", prefix_cache_retention_interval=retention),
    )
    groups: Any = SimpleNamespace(
        kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    )
    found = chunk_size(config or load({}), vllm_config, groups)
    spans = [resolve_dcp_kv_block_size(spec, dcp) for spec in specs]
    assert blocks_per_chunk(config or load({}), vllm_config, groups) * max(spans) == found.tokens
    return found


def test_a_chunk_is_of_one_group_and_of_one_rank() -> None:
    assert tokens(FULL) == (64, "auto: nearest to 8MiB")
    hybrid = ["sliding_attention"] * 24 + ["full_attention"] * 8
    for kinds in (hybrid, None):  # a pipeline's ranks see the groups alike, if not their layers
        assert tokens(FULL, WINDOW, WINDOW, WINDOW, layer_types=kinds)[0] == 256
    assert tokens(FULL, config=DRAM)[0] == 64


def test_what_makes_a_chunk_smaller() -> None:
    assert tokens(FULL, config=DRAM, ranks=4) == (64, "auto: nearest to 8MiB")
    assert tokens(FULL, config=DRAM, ranks=16) == (32, "auto: no more than 1/256 of DRAM")
    short = SlidingWindowSpec(
        block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16, sliding_window=33
    )
    assert tokens(FULL, short) == (32, "auto: no longer than the window of 33 tokens")
    assert tokens(FULL, retention=32) == (32, "auto: divides prefix_cache_retention_interval")
    assert tokens(FULL, STATES)[0] == 16


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_that_share_a_context_do_not_make_chunks_coarser(ranks: int) -> None:
    """One block of each rank spans `ranks` times its own tokens, and a token costs a rank as much less."""
    found, _ = tokens(FULL, dcp=ranks)
    block = resolve_dcp_kv_block_size(FULL, ranks)
    assert found % block == 0
    assert found <= 256
    assert tokens(FULL, config=load({"chunk_tokens": 2 * block}), dcp=ranks)[0] == 2 * block
    with pytest.raises(ConfigError, match=f"the engine's block of {block} tokens"):
        tokens(FULL, config=load({"chunk_tokens": block // 2}), dcp=ranks)


def test_states_are_whole_on_every_rank_that_shares_a_context() -> None:
    assert tokens(STATES, dcp=8)[0] == 16


def test_a_size_that_is_given_is_taken() -> None:
    assert tokens(FULL, WINDOW, config=load({"chunk_tokens": 2048})) == (2048, "chunk_tokens")
    with pytest.raises(ConfigError, match="24 is not a multiple of the engine's block"):
        tokens(FULL, config=load({"chunk_tokens": 24}))
