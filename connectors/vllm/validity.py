"""Whether KV may be reused at all: what vLLM has resolved about this model, read in one place.

vLLM's own switch for prefix caching is no answer, because a user may have turned it: that user keeps kvtier.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

_NO_PREFIX = {
    "CrossAttentionSpec": "its decoder attends to an encoder's output",
    "EncoderOnlyAttentionSpec": "its attention looks ahead",
    "RSWASpec": "its window moves over what it generates (R-SWA)",
}
"""KV-cache specs whose KV is no function of the prefix alone, by name: not every vLLM has all of them."""


def objection(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> str:
    """Say why KV of this engine must not be stored and loaded; empty where it may.

    Comes to the same result in EngineCore and in every worker.
    """
    specs = list(_specs(kv_cache_config))
    if not specs:
        return "the model has no KV cache"
    if not getattr(kv_cache_config, "prefix_cacheable_group_ids", specs):
        return _not_reusable("none of its caches holds a prefix")
    if getattr(kv_cache_config, "hisparse_host_num_blocks", None) is not None:
        return _not_reusable("vLLM itself keeps it in the host's memory (HiSparse)")
    for spec in specs:
        if why := _of_spec(spec):
            return _not_reusable(why)
    model = vllm_config.model_config
    if not getattr(model, "is_prefix_caching_supported", True) and not _chosen(vllm_config):
        pooler = model.pooler_config
        pooling = f", {pooler.seq_pooling_type} pooling" if pooler is not None else ""
        return _not_reusable(f"vLLM does not cache its prefixes ({model.attn_type}{pooling})")
    return _of_platform(vllm_config)


def _specs(kv_cache_config: "KVCacheConfig") -> "Iterable[KVCacheSpec]":
    """List the spec of every group, and of every layer where a group has several."""
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        yield from getattr(spec, "kv_cache_specs", {"": spec}).values()


def _of_spec(spec: "KVCacheSpec") -> str:
    """Say why a cache of this kind holds nothing that another request may use."""
    from vllm.v1 import kv_cache_interface as kinds

    if getattr(spec, "non_causal", False):
        return "its attention is not causal"
    if why := _NO_PREFIX.get(type(spec).__name__):
        return why
    if getattr(spec, "mamba_cache_mode", "") == "none":
        return "vLLM keeps its states for other requests only with prefix caching on"
    known = (
        kinds.FullAttentionSpec,
        kinds.SlidingWindowSpec,
        kinds.ChunkedLocalAttentionSpec,
        kinds.MambaSpec,
    )
    if getattr(spec, "prefix_cacheable", True) and not isinstance(spec, known):
        return f"it has a kind of cache that kvtier does not know ({type(spec).__name__})"
    return ""


def _chosen(vllm_config: "VllmConfig") -> bool:
    """Whether the user asks for what vLLM calls an experiment: cached prefixes of a model without attention."""
    caches = vllm_config.cache_config.enable_prefix_caching
    return bool(caches) and vllm_config.model_config.attn_type == "attention_free"


def _of_platform(vllm_config: "VllmConfig") -> str:
    """Say why this machine cannot go on from KV that is there: then vLLM turns two switches off, a user mostly one."""
    from vllm.platforms import CpuArchEnum, current_platform

    resolved = vllm_config.cache_config.enable_prefix_caching
    if resolved or vllm_config.scheduler_config.enable_chunked_prefill:
        return ""
    if not current_platform.is_cpu():
        return ""
    if vllm_config.model_config.use_mla:
        return _not_reusable("its latent attention (MLA) on this CPU needs whole prompts")
    if current_platform.get_cpu_architecture() == CpuArchEnum.RISCV:
        return _not_reusable("attention on RISC-V needs whole prompts")
    return ""


def _not_reusable(why: str) -> str:
    return f"KV of this model cannot be reused: {why}"
