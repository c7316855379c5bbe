"""Whose KV may be reused: every way in which vLLM says that a model's KV is no function of its prefix."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import ModelConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    EncoderOnlyAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.metrics.stats import PrefillStats

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.null_connector import NullConnector
from kvtier.connectors.vllm.validity import objection

PAGE: dict[str, Any] = {
    "block_size": 16,
    "num_kv_heads": 1,
    "head_size": 8,
    "dtype": torch.float32,
}
FULL = FullAttentionSpec(**PAGE)


def state(mode: str) -> MambaSpec:
    return MambaSpec(
        block_size=16, shapes=((4, 4),), dtypes=(torch.float32,), mamba_cache_mode=mode
    )


class Model(SimpleNamespace):
    """What vLLM says of a model, by its own rule."""

    is_prefix_caching_supported = ModelConfig.is_prefix_caching_supported


def vllm(
    *,
    pooling: str | None = None,
    token_pooling: str = "ALL",
    attn_type: str = "decoder",
    caching: bool = True,
    chunked: bool = True,
    mla: bool = False,
) -> Any:
    pooler = SimpleNamespace(seq_pooling_type=pooling, tok_pooling_type=token_pooling)
    model = Model(pooler_config=pooler if pooling else None, attn_type=attn_type, use_mla=mla)
    return SimpleNamespace(
        model_config=model,
        cache_config=SimpleNamespace(enable_prefix_caching=caching),
        scheduler_config=SimpleNamespace(enable_chunked_prefill=chunked),
    )


def said(*specs: object, **told: Any) -> str:
    caches: Any = SimpleNamespace(
        kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    )
    return objection(vllm(**told), caches)


def test_causal_attention_is_reused_whoever_switched_vllm_s_own_cache_off() -> None:
    assert not said(FULL)
    assert not said(FULL, SlidingWindowSpec(**PAGE, sliding_window=32))
    assert not said(FULL, caching=False)
    assert not said(FULL, caching=False, chunked=False)
    assert not said(FULL, pooling="LAST")
    assert not said(FULL, attn_type="hybrid")


def test_there_is_nothing_to_reuse_without_kv() -> None:
    assert said() == "the model has no KV cache"


@pytest.mark.parametrize("pooling", ["MEAN", "CLS"])
def test_a_pooler_that_wants_every_token_gets_it(pooling: str) -> None:
    assert f"{pooling} pooling" in said(FULL, pooling=pooling, caching=False)
    assert said(FULL, pooling=pooling), "also where the user forces vLLM's own cache"


def test_a_pooler_that_picks_steps_gets_every_token() -> None:
    assert said(FULL, pooling="LAST", token_pooling="STEP")


@pytest.mark.parametrize("attn_type", ["encoder_decoder", "attention_free"])
def test_models_whose_prefixes_vllm_does_not_cache(attn_type: str) -> None:
    assert attn_type in said(FULL, attn_type=attn_type, caching=False)


def test_an_encoder_looks_ahead() -> None:
    assert "encoder_only" in said(FULL, pooling="LAST", attn_type="encoder_only")


def test_a_model_without_attention_is_cached_where_the_user_asks_for_it() -> None:
    assert not said(FULL, attn_type="attention_free")


def test_attention_that_looks_ahead_or_elsewhere() -> None:
    ahead = FullAttentionSpec(**PAGE, non_causal=True)
    assert "not causal" in said(FULL, ahead)
    layers: dict[str, Any] = {"a": FULL, "b": ahead}
    assert "not causal" in said(UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs=layers))
    assert "encoder's output" in said(FULL, CrossAttentionSpec(**PAGE))


@pytest.mark.parametrize(
    "spec",
    [
        FULL,
        MLAAttentionSpec(**PAGE),
        SlidingWindowSpec(**PAGE, sliding_window=32),
        ChunkedLocalAttentionSpec(**PAGE, attention_chunk_size=32),
        state("align"),
        state("all"),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_every_kind_of_cache_that_holds_a_prefix(spec: object) -> None:
    assert not said(FULL, spec)
    assert not said(spec)


def test_states_of_running_requests_alone() -> None:
    """So vLLM keeps them where the user has switched prefix caching off."""
    assert "states" in said(FULL, state("none"), attn_type="hybrid", caching=False)


def test_an_encoder_s_own_cache() -> None:
    assert "looks ahead" in said(EncoderOnlyAttentionSpec(**PAGE))


@dataclass(frozen=True, kw_only=True)
class FutureSpec(AttentionSpec):  # type: ignore[misc] # vLLM is untyped here
    """A kind of cache that a later vLLM may have."""


@dataclass(frozen=True, kw_only=True)
class ScratchSpec(FutureSpec):
    """One that holds no prefix."""

    @property
    def prefix_cacheable(self) -> bool:
        return False


def test_a_kind_of_cache_that_nobody_thought_of() -> None:
    assert "FutureSpec" in said(FULL, FutureSpec(**PAGE))
    assert not said(FULL, ScratchSpec(**PAGE)), "what holds no prefix is not offloaded"


def test_no_cache_that_holds_a_prefix() -> None:
    groups = [KVCacheGroupSpec(["scratch"], ScratchSpec(**PAGE))]
    caches = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
    assert "none of its caches holds a prefix" in objection(vllm(), caches)


def test_kv_that_vllm_itself_keeps_on_the_host() -> None:
    groups = [KVCacheGroupSpec(["layer"], FULL)]
    caches = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
    caches.hisparse_host_num_blocks = 8
    assert "HiSparse" in objection(vllm(), caches)


def test_a_window_over_what_is_generated() -> None:
    rswa = pytest.importorskip("vllm.v1.kv_cache_interface").RSWASpec
    assert "R-SWA" in said(rswa(**PAGE, rswa_window=32))


@pytest.mark.skipif(not current_platform.is_cpu(), reason="of vLLM's CPU build")
def test_latent_attention_that_needs_whole_prompts() -> None:
    assert not said(FULL, mla=True)
    assert not said(FULL, mla=True, caching=False), "the user's own switch"
    assert "MLA" in said(FULL, mla=True, caching=False, chunked=False)


def test_under_a_multi_connector_its_metrics_are_found() -> None:
    multi: Any = SimpleNamespace(_connectors=[off()])
    stats = MultiConnector.get_kv_connector_stats(multi)
    assert stats is not None
    assert list(stats.data) == [KVTierConnector.__name__]


def off() -> Any:
    """What stands in for the connector of a model without KV, in EngineCore."""
    made_for: Any = SimpleNamespace(kv_transfer_config=SimpleNamespace(engine_id="a"))
    caches: Any = SimpleNamespace(kv_cache_groups=[])
    made: object = KVTierConnector(made_for, KVConnectorRole.SCHEDULER, caches)
    assert isinstance(made, NullConnector)
    return made


def test_who_asks_for_a_report_is_told_that_it_is_off() -> None:
    made, figures = off(), PrefillStats()
    figures.set(70, 5, 0)
    request: Any = SimpleNamespace(
        request_id="r",
        prefill_stats=figures,
        num_preemptions=0,
        num_computed_tokens=0,
        arrival_time=0.0,
        kv_transfer_params={"kvtier": {"report": True}},
    )
    made.update_state_after_alloc(request, None, 0)
    request.prefill_stats = None
    _, told = made.request_finished_all_groups(request, ())
    report = {"tokens": {"computed": 65, "hbm": 5}, "wait_ms": 0.0, "why": "off"}
    assert told == {"kvtier": {"report": report}}


def test_it_neither_stores_nor_loads_and_says_so_once() -> None:
    made = off()
    request: Any = SimpleNamespace(request_id="r")
    made.on_new_request(request)
    assert made.get_num_new_matched_tokens(request, 0) == (0, False)
    assert made.request_finished_all_groups(request, ()) == (False, None)
    assert not made.requires_kv_delivery
    assert made.reset_cache()
    assert made.get_kv_connector_stats().data
    assert made.get_kv_connector_stats() is None
