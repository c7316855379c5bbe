"""What is where in a page of the device's KV cache, learnt from the backend's own cache write.

Backends pack keys and values each in their own way, vLLM's CPU backend for every vector unit in another. Instead
of knowing the ways, known values are written into a scratch page at start and looked for.
"""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kvtier.config import Config
from kvtier.layout import ChunkLayout, Indices, UnknownLayoutError, chunk_layout
from kvtier.policy import EvictionPolicy
from kvtier.registry import build, lookup

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

_BASE = 8  # digits that every element type holds exactly, fp8 too
_DTYPES: dict[torch.dtype, Literal["bf16", "fp16", "fp32", "fp8"]] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.uint8: "fp8",
    torch.float8_e4m3fn: "fp8",
}
_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_Write = Callable[..., None]
_DEVICES = ("cpu", "cuda")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def element_name(dtype: str) -> str:
    """Name the element type that vLLM calls `dtype`; empty where kvtier has no name for it."""
    return "fp8" if dtype.startswith("fp8") else _NAMES.get(dtype, "")


class Pages(NamedTuple):
    """How the layers of one KV-cache group fill their pages."""

    dtype: Literal["bf16", "fp16", "fp32", "fp8"]
    indices: Indices  # in a page, of each element: (k/v, tokens, heads, channels)

    def chunk(self, layers: int, blocks: int, nbytes: int) -> ChunkLayout | str:
        """Describe a chunk of `nbytes` bytes, or say why that is not possible."""
        try:
            layout = chunk_layout(self.dtype, self.indices, layers, blocks)
        except UnknownLayoutError as exc:
            return str(exc)
        return layout if layout.nbytes == nbytes else "a chunk holds more than keys and values"


class Layer:
    """One attention layer and the shape of its page on the device."""

    def __init__(
        self,
        layer: torch.nn.Module,
        dtype: torch.dtype,
        cache: torch.Tensor,
        pages: int,
        tokens: int,
    ) -> None:
        """Take a layer that computes in `dtype`, and `cache`: all `pages` pages of it, of `tokens` tokens each.

        Raises:
            UnknownLayoutError: the pages are on a device that was not thought of. A wrong argument may take
                the device down with the kernel, so none is called.
        """
        if cache.device.type not in _DEVICES:
            raise UnknownLayoutError(f"not looked for on {cache.device.type} devices")
        self._layer = layer
        self._write: _Write = layer.impl.do_kv_cache_update  # type: ignore[assignment,union-attr] # a Module's attribute
        self._computed = dtype
        self.dtype = cache.dtype
        self._shape = (cache.shape[0] // pages, *cache.shape[1:])  # a page is several kernel blocks
        self._stride = cache.stride()
        self.shape = (2, tokens, int(layer.num_kv_heads), int(layer.head_size))  # type: ignore[arg-type] # a Module's attribute
        self._device = cache.device  # of every tensor that the kernel is given
        self._slots = torch.arange(tokens, dtype=torch.int64, device=cache.device)

    def written(self, values: torch.Tensor) -> torch.Tensor:
        """Write (k/v, tokens, heads, channels) through the backend and return the bits of the page, on the host."""
        page = torch.empty_strided(
            self._shape, self._stride, dtype=self.dtype, device=self._device
        ).zero_()
        key, value = values.to(self._computed).to(self._device)
        self._write(self._layer, key, value, page, self._slots)
        flat = torch.empty(0, dtype=self.dtype, device=self._device).set_(page.untyped_storage())
        return flat.view(_BITS[self.dtype.itemsize]).cpu()


def asked_for(config: Config) -> bool:
    """Whether a codec or a policy cannot do without knowing where keys and values lie."""
    policies = (lookup("eviction", tier.eviction.kind) for tier in config.tiers)
    codecs = (build("codec", tier.codec) for tier in config.tiers[1:])
    scored = any(issubclass(policy, EvictionPolicy) and policy.scored for policy in policies)
    return scored or any(codec.needs_layout for codec in codecs)


def find_pages(
    vllm_config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    caches: Mapping[str, torch.Tensor],
) -> dict[int, Pages | str]:
    """Find out, per KV-cache group, how its pages are filled, or why that cannot be known.

    Called once at start, when the backend is ready to write and nothing runs yet; milliseconds.
    """
    found: dict[int, Pages | str] = {}
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        try:
            layers = [
                Layer(
                    vllm_config.compilation_config.static_forward_context[name],
                    vllm_config.model_config.dtype,
                    caches[name],
                    kv_cache_config.num_blocks,
                    group.kv_cache_spec.block_size,
                )
                for name in group.layer_names
            ]
            found[index] = pages_of(layers)
        except Exception as exc:  # whatever a backend does here, the engine starts
            found[index] = f"{type(exc).__name__}: {exc}"
    return found


def pages_of(layers: Iterable[Layer]) -> Pages:
    """Find the one way in which all these layers fill their pages.

    Raises:
        UnknownLayoutError: there is none.
    """
    all_layers = list(layers)
    first = all_layers[0]
    if first.dtype not in _DTYPES:
        raise UnknownLayoutError(f"elements of {first.dtype}")
    indices = _search(first)
    for layer in all_layers:
        _prove(layer, indices)
    return Pages(_DTYPES[first.dtype], indices)


def _search(layer: Layer) -> Indices:
    """Number the elements, write the numbers digit by digit, and see where each one went."""
    codes = [int(layer.written(torch.full(layer.shape, digit))[0]) for digit in range(_BASE)]
    numbers = torch.arange(prod(layer.shape)).reshape(layer.shape)
    page: Indices = np.zeros(numbers.numel(), np.int64)
    power = 1
    while power < numbers.numel():
        bits = layer.written(numbers // power % _BASE).numpy()
        if bits.size != page.size:
            raise UnknownLayoutError(f"a page has {bits.size} elements for {page.size} values")
        page += power * _digits(bits, codes)
        power *= _BASE
    if not np.array_equal(np.sort(page), np.arange(page.size)):
        raise UnknownLayoutError("a page does not hold every value once")
    return np.argsort(page).reshape(layer.shape)


def _digits(bits: npt.NDArray[np.generic], codes: list[int]) -> Indices:
    order = np.argsort(codes)
    at = np.searchsorted(np.take(codes, order), bits).clip(max=_BASE - 1)
    digits = order[at]
    if len(set(codes)) < _BASE or not np.array_equal(np.take(codes, digits), bits):
        raise UnknownLayoutError("what was written is not there as it was written")
    return digits


def _prove(layer: Layer, indices: Indices) -> None:
    """Write random values and find every bit of them where `indices` says."""
    if layer.dtype.itemsize == 1:  # scaled and rounded by the backend: bits cannot be compared
        if not np.array_equal(_search(layer), indices):
            raise UnknownLayoutError("layers differ in how they fill their pages")
        return
    values = torch.randn(indices.shape, generator=torch.Generator().manual_seed(0)).to(layer.dtype)
    bits = layer.written(values)
    if not torch.equal(bits[torch.from_numpy(indices)], values.view(bits.dtype)):
        raise UnknownLayoutError("layers differ in how they fill their pages")
