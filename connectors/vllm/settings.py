"""From vLLM's configuration and ours to what both sides of the connector run with."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from kvtier.chunking import ChunkSize, auto_chunk_tokens, largest_group
from kvtier.config import Config, load, share
from kvtier.connectors.vllm.roll_call import refuse_lone_ranks
from kvtier.errors import ConfigError
from kvtier.registry import nearest
from kvtier.units import format_nbytes

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


_SPEC = "KVTierSpec"
_KNOWN_KEYS = {
    *("kvtier", "spec_name", "spec_module_path", "offload_prompt_only", "blocks_per_chunk"),
    *("sync_load_budget_bytes", "canonical_layout", "self_describing_kv_events"),
}
"""Of `kv_connector_extra_config`: ours, what we set for vLLM, what we refuse, and what vLLM reads beside."""
_WORDS = ["kvtier", "self_describing_kv_events"]  # that a user may mean


def configure(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> Config:
    """Load our configuration and set what vLLM's offloading connector reads, before it reads it.

    Runs alike in EngineCore and in every worker, and must come to the same result in each.
    """
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    extra: dict[str, Any] = transfer.kv_connector_extra_config
    refuse_foreign_keys(extra)
    refuse_lone_ranks(vllm_config.parallel_config)
    config = load(extra.get("kvtier"))
    name_spec(extra)
    transfer.kv_load_failure_policy = "recompute"
    extra["sync_load_budget_bytes"] = 0  # whatever a release takes for the default
    extra.setdefault("self_describing_kv_events", True)  # a chunk of several blocks is nothing else
    settle(extra, "offload_prompt_only", config.store == "prompt", "store")
    blocks = blocks_per_chunk(config, vllm_config, kv_cache_config)
    settle(extra, "blocks_per_chunk", blocks, "chunk_tokens")
    return config


def settle(extra: dict[str, Any], key: str, value: object, ours: str) -> None:
    """Set an option of vLLM that follows from `ours`; another value of it would never be read."""
    if extra.setdefault(key, value) != value:
        raise ConfigError(
            f"kv_connector_extra_config.{key}: kvtier sets it, to {value}; remove it, and set {ours} in kvtier's "
            f"configuration"
        )


def summary(mine: Config, arena_nbytes: int) -> str:
    """Say in one line which tiers a rank has, the first as large as its slots really are."""
    said = [f"{mine.tiers[0].name} {format_nbytes(arena_nbytes)}"]
    for tier in mine.tiers[1:]:
        where = f" at {tier.options['path']}" if "path" in tier.options else ""
        size = "" if tier.capacity is None else f" {format_nbytes(tier.capacity)}"
        said.append(f"{tier.name}{size} ({tier.kind}{where})")
    return ", ".join(said)


def name_spec(extra: dict[str, Any]) -> None:
    """Point vLLM's factory at our spec; the API server needs this for the metrics too."""
    extra["spec_name"] = _SPEC
    extra["spec_module_path"] = "kvtier.connectors.vllm.spec"


def refuse_foreign_keys(extra: dict[str, Any]) -> None:
    """Refuse options that would not mean what they say here, and those that nobody would read."""
    if extra.get("spec_name", _SPEC) != _SPEC:
        raise ConfigError(
            f"kv_connector_extra_config.spec_name: kvtier brings its own, {_SPEC}; remove it"
        )
    for key in ("sync_load_budget_bytes", "canonical_layout"):
        if extra.get(key):
            raise ConfigError(
                f"kv_connector_extra_config.{key}: not supported by kvtier; remove it"
            )
    for key in extra.keys() - _KNOWN_KEYS:
        raise ConfigError(
            f"kv_connector_extra_config.{key}: unknown key{nearest(key, _WORDS)}; what is kvtier's goes "
            f"into {{'kvtier': FILE or mapping}}"
        )


def blocks_per_chunk(
    config: Config, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig"
) -> int:
    """Blocks of one chunk, from the model's configuration alone so that every process agrees."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    block_tokens = _block_tokens(specs, vllm_config)
    return chunk_size(config, vllm_config, kv_cache_config).tokens // block_tokens


def chunk_size(
    config: Config, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig"
) -> ChunkSize:
    """Tokens of one chunk, and why so many."""
    from vllm.v1.kv_cache_interface import MambaSpec

    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    block_tokens = _block_tokens(specs, vllm_config)
    if any(isinstance(spec, MambaSpec) for spec in specs):
        return ChunkSize(block_tokens, "one block, for the states of Mamba layers")
    if config.chunk_tokens is not None:
        if config.chunk_tokens % block_tokens:
            raise ConfigError(
                f"chunk_tokens: {config.chunk_tokens} is not a multiple of the engine's block of "
                f"{block_tokens} tokens; use {-(-config.chunk_tokens // block_tokens) * block_tokens} or auto"
            )
        return ChunkSize(config.chunk_tokens, "chunk_tokens")
    tokens, why = auto_chunk_tokens(
        block_tokens,
        kv_nbytes_per_token(vllm_config)
        * float(_largest_group(vllm_config, len(specs)))
        / max(_context_ranks(spec, vllm_config) for spec in specs),
        window=_smallest_window(specs),
        dram_nbytes=_stated_dram_nbytes(config, vllm_config),
    )
    retention = getattr(vllm_config.cache_config, "prefix_cache_retention_interval", None)
    while retention and tokens > block_tokens and retention % tokens:
        tokens, why = max(block_tokens, tokens // 2), "divides prefix_cache_retention_interval"
    return ChunkSize(tokens, f"auto: {why}")


def _block_tokens(specs: "Sequence[KVCacheSpec]", vllm_config: "VllmConfig") -> int:
    """Tokens of a sequence that one block of each rank holds."""
    return max(spec.block_size * _context_ranks(spec, vllm_config) for spec in specs)


def _context_ranks(spec: "KVCacheSpec", vllm_config: "VllmConfig") -> int:
    """Count the ranks among which the tokens of a sequence are divided."""
    parallel = vllm_config.parallel_config
    return int(parallel.decode_context_parallel_size) if spec.dcp_sharded else 1


def kv_nbytes_per_token(vllm_config: "VllmConfig") -> int:
    """Estimate the KV bytes of one token on one rank, all layers taken as full attention."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    cache_dtype = vllm_config.cache_config.cache_dtype
    itemsize = _itemsize(model.dtype if cache_dtype == "auto" else cache_dtype)
    heads = 1 if model.use_mla else 2 * model.get_num_kv_heads(parallel)
    layers = -(-model.get_total_num_hidden_layers() // parallel.pipeline_parallel_size)
    return int(heads * model.get_head_size() * layers * itemsize)


def _largest_group(vllm_config: "VllmConfig", groups: int) -> Fraction:
    """Return the largest KV-cache group's part of the layers; a pipeline's ranks see other groups each."""
    kinds = getattr(vllm_config.model_config.hf_text_config, "layer_types", None)
    if groups == 1 or not kinds:
        return Fraction(1, groups)
    return largest_group(Counter(kinds).values())


def _smallest_window(specs: "Sequence[KVCacheSpec]") -> int | None:
    """Look into layers that share a group with unequal pages too: the workers see those, EngineCore one of them."""
    layers = (
        each for spec in specs for each in getattr(spec, "kv_cache_specs", {0: spec}).values()
    )
    names = ("sliding_window", "attention_chunk_size")
    sizes = (getattr(layer, name, None) for layer in layers for name in names)
    return min((size for size in sizes if size), default=None)


def _stated_dram_nbytes(config: Config, vllm_config: "VllmConfig") -> int | None:
    """Return one rank's share of DRAM, if the user states a capacity; no process may ask the machine here."""
    if config.tiers[0].capacity is None:
        return None
    parallel = vllm_config.parallel_config
    nodes = getattr(parallel, "nnodes_within_dp", 1)
    return share(config.tiers[0].capacity, max(1, parallel.world_size // nodes))


def _itemsize(dtype: object) -> int:
    """Bytes of one element, by torch's dtype or its name; what torch does not know is narrow: a byte."""
    import torch

    return int(getattr(torch, str(dtype).removeprefix("torch."), torch.uint8).itemsize)
