"""The namespace manifest: everything that makes one engine's KV bytes meaningless to another.

Two engines share records only if their manifests are equal to the letter.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from kvtier.config import Config
from kvtier.connectors.vllm.model_length import length_that_counts
from kvtier.connectors.vllm.ranks import Hello
from kvtier.connectors.vllm.weights import FROM_FILES
from kvtier.io_process.record import FORMAT
from kvtier.registry import build

if TYPE_CHECKING:
    from vllm.config import ModelConfig, ParallelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

_SWITCHES = ("quantization_config", "model_class_overrides", "code_revision")
_MEDIA_SWITCHES = ("video_pruning_rate", "video_pruning_method", "mm_encoder_attn_dtype")
"""Options of vLLM that change what is computed from the same weights, and that are mostly not given."""


_WHERE = ("_name_or_path", "transformers_version", "name_or_path")
_CALLED_THROUGH_VLLM = (None, "mp", "uni", "ray")
"""Executors whose workers are in processes of vLLM's own: whoever changes their weights calls vLLM, and that is heard."""


def manifest(
    vllm_config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    hellos: Iterable[Hello],
    config: Config,
    epoch: str = "",
) -> str:
    """Write the namespace out as JSON, the same text for the same meaning.

    Args:
        config: ours; the user's own word on the weights stands in where they cannot be identified.
        epoch: empty until the cache is reset; then random, so that no later engine takes these records.
    """
    import vllm
    from vllm.v1.core.kv_cache_utils import NONE_HASH

    cache = vllm_config.cache_config
    ranks = sorted(hellos, key=lambda hello: hello.rank)
    described = {
        "format": FORMAT,
        "vllm": ".".join(vllm.__version__.split(".")[:2]),
        **_of_model(vllm_config),
        **_where(vllm_config, ranks, config),
        "weights": [_weights(hello, config) for hello in ranks if hello.weights is not None],
        "weights_id": config.weights_id,
        "persist_lora": config.persist_lora,
        "kv_dtype": str(cache.cache_dtype),
        "devices": sorted({hello.device for hello in ranks}),
        "groups": [
            {
                "layers": list(group.layer_names),
                "spec": type(group.kv_cache_spec).__name__,
                "block_tokens": group.kv_cache_spec.block_size,
                "page_nbytes": group.kv_cache_spec.page_size_bytes,
                "pages": sorted({said for hello in ranks for said in hello.arranged[index]}),
            }
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
        ],
        "pages": [
            {str(group): list(pages) for group, pages in hello.pages.items()} for hello in ranks
        ],
        "blocks_per_chunk": ranks[0].blocks_per_chunk,
        "parallel": _of_parallel(vllm_config.parallel_config),
        "shards": _shards(ranks),
        "hash": [str(cache.prefix_caching_hash_algo), bytes(NONE_HASH).hex()],
        "epoch": epoch,
    }
    if changing := lossy(config):  # what is computed on top is not exact either: all tiers
        described["lossy"] = [codec for _, codec in changing]
    return json.dumps(described, sort_keys=True, indent=1)


def in_epoch(manifest: str, epoch: str) -> str:
    """Write a manifest of this engine out again for the epoch that follows a reset; looks at nothing but the text."""
    return json.dumps({**json.loads(manifest), "epoch": epoch}, sort_keys=True, indent=1)


def shared_manifest(
    manifest: str, hellos: Iterable[Hello], config: Config, architecture: str
) -> str:
    """Write a manifest of this engine out again for stores that engines share: no name in it is of one machine only."""
    said = json.loads(manifest)
    found = [hello.weights for hello in hellos if hello.weights is not None]
    said["weights"] = [each.sample if _named(config) else each.content for each in found]
    if all(said["weights"]):  # else where they are from has to say what they are
        for place in ("model", "revision"):
            said.pop(place, None)
    return json.dumps({**said, "epoch": "", "config": architecture}, sort_keys=True, indent=1)


def architecture(model: "ModelConfig") -> str:
    """Digest all that the model's configuration says, but for where it was."""
    told = {name: each for name, each in model.hf_config.to_dict().items() if name not in _WHERE}
    text = json.dumps(told, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def private(vllm_config: "VllmConfig", hellos: Iterable[Hello], config: Config) -> str:
    """Say why no other engine could use this one's records; empty if some can."""
    hellos = list(hellos)
    if why := ephemeral(vllm_config, hellos, config) or _unwatched(vllm_config.parallel_config):
        return why
    if config.persist_lora:
        return "persist_lora: an adapter's name and path say on no other machine what is in it"
    if vllm_config.model_config.multimodal_config is not None:
        return "the model takes images, audio or video, and a client's name for one may mean another one elsewhere"
    said = chain.from_iterable(each for hello in hellos for each in hello.arranged.values())
    if any(each.startswith("unknown") for each in [*said, *(hello.device for hello in hellos)]):
        return "how the pages of the device's cache lie cannot be looked at"
    weights = [hello.weights for hello in hellos if hello.weights is not None]
    if not _named(config) and not all(each.content for each in weights):
        return (
            "the content of the weight files is not known yet; it is from the second start on, where a tier of kind file "
            "remembers it; or set weights_id"
        )
    return ""


def _unwatched(parallel: "ParallelConfig") -> str:
    """Say why weights could change without a call of vLLM's, so that what is written until that is seen would be wrong."""
    from vllm import envs
    from vllm.v1.engine.core import EngineCore

    backend = parallel.distributed_executor_backend
    if not hasattr(EngineCore, "collective_rpc"):
        return "this vLLM does not say when workers are called, which may change weights"
    if parallel.worker_extension_cls or not str(parallel.worker_cls).startswith(("auto", "vllm.")):
        return "workers have code of others in them, which could change weights"
    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return "the engine is in the process of its user, who could change weights past vLLM"
    if backend not in _CALLED_THROUGH_VLLM:
        return f"workers that {backend} starts could have their weights changed past vLLM"
    return ""


def _of_model(vllm_config: "VllmConfig") -> dict[str, object]:
    """Describe what computes the KV, but for its weights."""
    model, draft = vllm_config.model_config, vllm_config.speculative_config
    hf = model.hf_config
    return {
        **_switches(model),
        "architecture": sorted(getattr(hf, "architectures", None) or []),
        "max_model_len": length_that_counts(model),
        "multimodal": repr(getattr(model.multimodal_config, "mm_processor_kwargs", None)),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "rope": repr(getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None)),
        "hf_overrides": repr(getattr(model, "hf_overrides", None)),
        "draft": repr((draft.method, getattr(draft, "model", None))) if draft else "",
    }


def _switches(model: "ModelConfig") -> dict[str, object]:
    """Describe what else the user has set of the model; nothing where that is nothing."""
    sides = ((model, _SWITCHES), (model.multimodal_config, _MEDIA_SWITCHES))
    found = {name: getattr(side, name, None) for side, names in sides for name in names}
    given = {name: repr(value) for name, value in found.items() if value}
    return {"switches": given} if given else {}


def _where(vllm_config: "VllmConfig", ranks: Iterable[Hello], config: Config) -> dict[str, object]:
    """Say where the model is from, but where its files are known: they may be copied and moved."""
    names = [hello.weights.name for hello in ranks if hello.weights]
    if not _named(config) and all(name.startswith(FROM_FILES) for name in names):
        return {}
    model = vllm_config.model_config
    return {"model": model.model, "revision": str(model.revision)}


def _shards(ranks: Iterable[Hello]) -> str:
    """Say what a record is: all that one rank has of a chunk, or that each of them has."""
    return "one for all ranks" if all(hello.copies for hello in ranks) else "ranks"


def _of_parallel(parallel: "ParallelConfig") -> dict[str, int]:
    """Describe how the KV is cut over ranks."""
    return {
        "tensor": parallel.tensor_parallel_size,
        "pipeline": parallel.pipeline_parallel_size,
        "decode_context": parallel.decode_context_parallel_size,
        "prefill_context": parallel.prefill_context_parallel_size,
        "interleave": getattr(parallel, "cp_kv_cache_interleave_size", 1),
    }


def ephemeral(vllm_config: "VllmConfig", hellos: Iterable[Hello], config: Config) -> str:
    """Say why the records of this engine cannot outlive it; empty if they can."""
    import os

    cache = vllm_config.cache_config
    whys = [hello.weights.why for hello in hellos if hello.weights and not hello.weights.name]
    if whys and not _named(config):
        return f"the weights cannot be identified, {whys[0]}; set weights_id"
    if "xxhash" in str(cache.prefix_caching_hash_algo) and os.getenv("PYTHONHASHSEED") is None:
        return "block hashes are seeded at random; set PYTHONHASHSEED or use sha256"
    return ""


def lossy(config: Config) -> list[tuple[str, dict[str, object]]]:
    """List the tiers that do not give back what they were given, with their codecs."""
    return [
        (tier.name, {"kind": tier.codec.kind, "options": dict(tier.codec.options)})
        for tier in config.tiers[1:]
        if build("codec", tier.codec).lossy
    ]


def _weights(hello: Hello, config: Config) -> str:
    """Name the weights of a node; where the user has named them, see no more than whether they are another model's."""
    assert hello.weights is not None
    return hello.weights.sample if _named(config) else hello.weights.name or _nonce()


def _named(config: Config) -> bool:
    """Whether the user's own word stands for the weights."""
    return config.weights_id != "auto"


def _nonce() -> str:
    return f"random:{secrets.token_hex(16)}"


def new_epoch() -> str:
    """Draw the epoch that follows a reset."""
    return _nonce()
