"""The backend's own cache write is asked where it puts things, and believed only bit for bit."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

pytest.importorskip("vllm")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, while vLLM is imported
    import torch
    from vllm import _custom_ops as ops

from kvtier.connectors.vllm.pages import Layer, Pages, find_pages, pages_of
from kvtier.layout import ChunkLayout, Indices, UnknownLayoutError
from tests.packings import Packing, page

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

TOKENS, HEADS, DIM = 64, 2, 32

Write = Callable[..., None]


class Backend:
    """The part of an attention layer that is asked, around vLLM's CPU operator or a lie."""

    def __init__(self, write: Write) -> None:
        self.do_kv_cache_update = write


def written_by(isa: str, dtype: str = "auto") -> Write:
    def write(
        layer: object,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        blocks, heads, tokens, _ = cache.shape
        keys, values = cache.view(blocks, heads, 2 * tokens, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(key, value, keys, values, slots, isa, kv_cache_dtype=dtype)

    return write


def module_of(write: Write) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, value in {"num_kv_heads": HEADS, "head_size": DIM, "impl": Backend(write)}.items():
        setattr(module, name, value)
    return module


def layer(write: Write, dtype: torch.dtype = torch.bfloat16, split: int = 1) -> Layer:
    """A layer of 5 pages; each page is `split` blocks of the kernel's."""
    module = module_of(write)
    cache = torch.zeros((5 * split, HEADS, TOKENS // split, 2 * DIM), dtype=dtype)
    computed = torch.bfloat16 if dtype == torch.uint8 else dtype
    return Layer(module, computed, cache, 5, TOKENS)


@pytest.mark.parametrize(
    ("isa", "packing", "dtype", "name"),
    [
        ("vec", "vec", torch.bfloat16, "bf16"),
        ("vec", "vec", torch.float16, "fp16"),
        ("vec", "vec", torch.float32, "fp32"),
        ("amx", "amx", torch.bfloat16, "bf16"),
    ],
)
def test_finds_the_packing(isa: str, packing: Packing, dtype: torch.dtype, name: str) -> None:
    try:
        found = pages_of([layer(written_by(isa), dtype), layer(written_by(isa), dtype)])
    except RuntimeError as exc:
        pytest.skip(f"this build packs nothing for {isa}: {exc}")
    assert found.dtype == name
    assert np.array_equal(found.indices, page(packing, TOKENS, HEADS, DIM))


def test_a_page_may_be_several_blocks_of_the_kernel() -> None:
    found = pages_of([layer(written_by("vec"), split=2)])
    halves = page("vec", TOKENS // 2, HEADS, DIM)
    assert np.array_equal(found.indices, np.concatenate([halves, halves + halves.size], axis=1))


def test_fp8_is_found_by_its_digits() -> None:
    try:
        found = pages_of([layer(written_by("vec", "fp8"), torch.uint8)])
    except (RuntimeError, NotImplementedError) as exc:
        pytest.skip(f"no fp8 cache here: {exc}")
    assert found.dtype == "fp8"
    assert np.array_equal(found.indices, page("vec", TOKENS, HEADS, DIM))


def test_layers_that_differ_have_no_layout() -> None:
    with pytest.raises(UnknownLayoutError, match="differ"):
        pages_of([layer(written_by("vec")), layer(lambda *_: None)])


def test_a_backend_that_changes_what_it_writes_has_no_layout() -> None:
    def halve(layer: object, key: torch.Tensor, value: torch.Tensor, *rest: torch.Tensor) -> None:
        written_by("vec")(layer, key, value / 2 + 1e30, *rest)

    with pytest.raises(UnknownLayoutError, match="not there"):
        pages_of([layer(halve)])


def test_a_chunk_is_described_or_refused_in_words() -> None:
    found = Pages("bf16", page("amx", TOKENS, HEADS, DIM))
    nbytes = 4 * 3 * TOKENS * HEADS * DIM
    chunk = found.chunk(3, 1, nbytes)
    assert isinstance(chunk, ChunkLayout)
    assert chunk.shape == (3, TOKENS, HEADS, DIM)
    assert found.chunk(3, 1, nbytes + 512) == "a chunk holds more than keys and values"
    assert "not exactly" in str(Pages("bf16", 2 * found.indices).chunk(3, 1, nbytes))


def interleaved(
    layer: object, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write as the GPU backends do: heads, then tokens, then the channels of the key and of the value."""
    tokens = cache.shape[2]
    for at, slot in enumerate(slots.tolist()):
        block, token = divmod(slot, tokens)
        cache[block, :, token] = torch.cat([key[at], value[at]], dim=-1).to(cache.dtype)


def expected_interleaved() -> Indices:
    kv, token, head, channel = np.ogrid[:2, :TOKENS, :HEADS, :DIM]
    return ((head * TOKENS + token) * 2 + kv) * DIM + channel


def test_keys_and_values_may_lie_side_by_side() -> None:
    found = pages_of([layer(interleaved)])
    assert np.array_equal(found.indices, expected_interleaved())
    assert isinstance(found.chunk(3, 2, 2 * 4 * 3 * TOKENS * HEADS * DIM), ChunkLayout)


@pytest.mark.gpu
def test_on_a_gpu_its_own_write_is_asked() -> None:
    scale = torch.ones(1, device="cuda")

    def write(
        layer: object,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        keys, values = cache.transpose(1, 2).chunk(2, dim=-1)
        ops.reshape_and_cache_flash(key, value, keys, values, slots, "auto", scale, scale)

    cache = torch.zeros((5, HEADS, TOKENS, 2 * DIM), dtype=torch.bfloat16, device="cuda")
    found = pages_of([Layer(module_of(write), torch.bfloat16, cache, 5, TOKENS)])
    assert np.array_equal(found.indices, expected_interleaved())


def test_on_another_device_no_kernel_is_called() -> None:
    called: list[object] = []
    cache = torch.zeros((5, HEADS, TOKENS, 2 * DIM), dtype=torch.bfloat16, device="meta")
    names = SimpleNamespace(layer_names=["a"], kv_cache_spec=SimpleNamespace(block_size=TOKENS))
    engine = SimpleNamespace(
        compilation_config=SimpleNamespace(
            static_forward_context={"a": module_of(lambda *given: called.append(given))}
        ),
        model_config=SimpleNamespace(dtype=torch.bfloat16),
    )
    cached = SimpleNamespace(kv_cache_groups=[names], num_blocks=5)
    found = find_pages(cast("VllmConfig", engine), cast("KVCacheConfig", cached), {"a": cache})
    assert found == {0: "UnknownLayoutError: not looked for on meta devices"}
    assert called == []
