"""The namespace manifest: everything that makes one engine's KV bytes meaningless to another.

Two engines share records only if their manifests are equal to the letter.
"""

import json
import platform
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from kvtier.config import Config
from kvtier.connectors.vllm.ranks import Hello
from kvtier.registry import build

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

FORMAT = 1
_SAMPLE = 64 << 10
_VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(/|$)")


def weights_identity(model: str, revision: str | None, load_format: str, seed: int | None) -> str:
    """Identify a model's weights; empty where nothing trustworthy can be found.

    A hub snapshot is its commit. A directory is config.json and, per weight file, its name, size and a hash
    of sampled pieces; never a modification time, which a copy changes and an edit may not.
    """
    if str(load_format) == "dummy":
        return f"dummy:{seed}"
    path = Path(model)
    if not path.is_dir():
        return _snapshot_commit(model, revision)
    if match := _SNAPSHOT.search(str(path.resolve())):
        return f"commit:{match.group(1)}"
    files = sorted({file for pattern in _WEIGHTS for file in path.glob(pattern)})
    if not files:
        return ""
    digest = xxhash.xxh3_128()
    for file in [path / "config.json", *files]:
        if file.is_file():
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            for piece in _samples(file):
                digest.update(piece)
    return f"files:{digest.hexdigest()}"


def _samples(file: Path) -> Iterable[bytes]:
    """Read pieces spread over the file: its head, its tail and 14 between."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        for i in range(16):
            stream.seek(max(0, (size - _SAMPLE) * i // 15))
            yield stream.read(_SAMPLE)


def _snapshot_commit(model: str, revision: str | None) -> str:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return ""
    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # neither a directory nor the name of a repository
        return ""
    match = _SNAPSHOT.search(found) if isinstance(found, str) else None
    return f"commit:{match.group(1)}" if match else ""


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
        "weights": [hello.weights or _named(config) or _nonce() for hello in ranks],
        "weights_id": config.weights_id,
        "persist_lora": config.persist_lora,
        "kv_dtype": str(cache.cache_dtype),
        "attention": repr(getattr(vllm_config.attention_config, "backend", None)),
        "platform": _platform(),
        "kv_layout": str(getattr(cache, "kv_cache_layout", None)),
        "groups": [
            {
                "layers": list(group.layer_names),
                "spec": type(group.kv_cache_spec).__name__,
                "block_tokens": group.kv_cache_spec.block_size,
            }
            for group in kv_cache_config.kv_cache_groups
        ],
        "pages": [
            {str(group): list(pages) for group, pages in hello.pages.items()} for hello in ranks
        ],
        "blocks_per_chunk": ranks[0].blocks_per_chunk,
        "parallel": _of_parallel(vllm_config.parallel_config),
        "hash": [str(cache.prefix_caching_hash_algo), bytes(NONE_HASH).hex()],
        "epoch": epoch,
    }
    if changing := lossy(config):  # what is computed on top is not exact either: all tiers
        described["lossy"] = [codec for _, codec in changing]
    return json.dumps(described, sort_keys=True, indent=1)


def in_epoch(manifest: str, epoch: str) -> str:
    """Write a manifest of this engine out again for the epoch that follows a reset; looks at nothing but the text."""
    return json.dumps({**json.loads(manifest), "epoch": epoch}, sort_keys=True, indent=1)


def _of_model(vllm_config: "VllmConfig") -> dict[str, object]:
    """Describe what computes the KV, but for its weights."""
    model, draft = vllm_config.model_config, vllm_config.speculative_config
    hf = model.hf_config
    return {
        "model": model.model,
        "architecture": sorted(getattr(hf, "architectures", None) or []),
        "revision": str(model.revision),
        "max_model_len": model.max_model_len,  # LongRoPE chooses its factors by it
        "multimodal": repr(getattr(model.multimodal_config, "mm_processor_kwargs", None)),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "rope": repr(getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None)),
        "hf_overrides": repr(getattr(model, "hf_overrides", None)),
        "draft": repr((draft.method, getattr(draft, "model", None))) if draft else "",
    }


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
    if not _named(config) and not all(hello.weights for hello in hellos):
        return "the weights cannot be identified; set weights_id"
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


def _named(config: Config) -> str:
    return "" if config.weights_id == "auto" else f"user:{config.weights_id}"


def _nonce() -> str:
    return f"random:{secrets.token_hex(16)}"


def new_epoch() -> str:
    """Draw the epoch that follows a reset."""
    return _nonce()


def _platform() -> str:
    """Name what decides the packing inside a page beyond the layout: the device, and the CPU's vector unit."""
    from vllm.platforms import current_platform

    if current_platform.device_type != "cpu":
        return str(current_platform.device_type)
    found = re.search(
        r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
    )
    flags = found.group(1).split() if found else []
    units = [unit for unit in _VECTOR_UNITS if unit in flags]
    return ",".join(["cpu", platform.machine(), *units])
