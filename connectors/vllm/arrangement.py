"""How the pages of a device's KV cache came about: what tells pages of one size apart that mean different things."""

import logging
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

_VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def arrangements(
    vllm_config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    caches: Mapping[str, "torch.Tensor | Sequence[torch.Tensor]"],
) -> dict[int, tuple[str, ...]]:
    """Say per KV-cache group which backend vLLM has chosen, and how the tensors of its layers lie; no kernel runs.

    What cannot be found out is another word at each start, so that nothing is shared by mistake.
    """
    layers = vllm_config.compilation_config.static_forward_context
    blocks = kv_cache_config.num_blocks
    found: dict[int, tuple[str, ...]] = {}
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        try:
            said = {
                f"{_backend(layers.get(name))} {_tensors(caches[name], blocks)}"
                for name in group.layer_names
                if name in caches  # the others are on other ranks
            }
        except Exception as exc:  # whatever a backend has here, the engine starts
            said = {_unknown(f"the pages of group {index}", exc)}
        found[index] = tuple(sorted(said))
    return found


def device_name(device: torch.device) -> str:
    """Name what decides the packing beyond the backend: a device's major architecture, or a CPU's vector units."""
    from vllm.platforms import current_platform

    try:
        if device.type == "cpu":
            return _cpu_name()
        capability = current_platform.get_device_capability(device.index or 0)
    except Exception as exc:  # see `arrangements`
        return _unknown(f"the device {device}", exc)
    return f"{device.type}-{capability.major}" if capability else device.type


def _unknown(what: str, why: Exception) -> str:
    logger.warning(
        "kvtier: what is stored will not be found after a restart: %s cannot be looked at: %r",
        what,
        why,
    )
    return f"unknown {secrets.token_hex(16)}"


def _backend(layer: object) -> str:
    try:
        backend = layer.get_attn_backend()  # type: ignore[attr-defined] # of whatever has a cache
    except Exception:  # a layer that vLLM builds otherwise: its own class says as much
        backend = type(layer)
    return f"{backend.__module__}.{backend.__qualname__}"


def _tensors(cache: "torch.Tensor | Sequence[torch.Tensor]", blocks: int) -> str:
    parts = [cache] if isinstance(cache, torch.Tensor) else list(cache)
    return "; ".join(_tensor(part, blocks) for part in parts)


def _tensor(tensor: torch.Tensor, blocks: int) -> str:
    """Describe a tensor by its type, its shape without the number of blocks, and the order of its strides."""
    shape: list[int | str] = list(tensor.shape)
    whole = [i for i, n in enumerate(tensor.shape) if n and n % blocks == 0]
    if whole:
        counted = max(whole, key=lambda i: tensor.shape[i])
        shape[counted] = f"{tensor.shape[counted] // blocks} a block"
    order = sorted(range(tensor.dim()), key=lambda i: (-tensor.stride()[i], i))
    return f"{tensor.dtype} {shape} {order}".replace("'", "")


def _cpu_name() -> str:
    found = re.search(
        r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
    )
    flags = found.group(1).split() if found else []
    units = [unit for unit in _VECTOR_UNITS if unit in flags]
    return ",".join(["cpu", platform.machine(), *units])
