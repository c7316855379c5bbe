"""A layout says where every element is, or that nobody can say."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.layout import Axis, ChunkLayout, Factors, UnknownLayoutError, chunk_layout
from tests.packings import PACKINGS, Packing, gather, layout, page, scatter

LOGICAL: tuple[Axis, ...] = ("layers", "tokens", "heads", "dim")


@given(
    packing=st.sampled_from(PACKINGS),
    layers=st.integers(1, 3),
    blocks=st.integers(1, 3),
    tokens=st.sampled_from([16, 32, 48]),
    heads=st.integers(1, 3),
    dim=st.sampled_from([16, 32, 80]),
)
def test_every_element_is_where_it_says(
    packing: Packing, layers: int, blocks: int, tokens: int, heads: int, dim: int
) -> None:
    found = layout(packing, layers=layers, blocks=blocks, tokens=tokens, heads=heads, dim=dim)
    assert found.shape == (layers, blocks * tokens, heads, dim)
    chunk = np.arange(found.nbytes // 2, dtype=np.uint16)
    pages = chunk.reshape(layers, blocks, -1)
    for kv, plane in enumerate((found.keys, found.values)):
        wanted = pages[:, :, page(packing, tokens, heads, dim)[kv]].reshape(found.shape)
        assert np.array_equal(gather(found, chunk.view(np.uint8), plane, LOGICAL), wanted)


@pytest.mark.parametrize("packing", PACKINGS)
def test_scatter_undoes_gather_in_any_order(packing: Packing) -> None:
    found = layout(packing, blocks=2)
    chunk = np.random.default_rng(0).integers(0, 256, found.nbytes, dtype=np.uint8)
    order: tuple[Axis, ...] = ("heads", "dim", "layers", "tokens")
    again = np.zeros_like(chunk)
    for plane in (found.keys, found.values):
        scatter(found, gather(found, chunk, plane, order), again, plane, order)
    assert np.array_equal(again, chunk)


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_layer_alone(packing: Packing) -> None:
    found = layout(packing, blocks=2)
    chunk = np.random.default_rng(0).integers(0, 256, found.nbytes, dtype=np.uint8)
    again = np.zeros_like(chunk)
    for plane in (found.keys, found.values):
        whole = gather(found, chunk, plane, LOGICAL)
        for index in range(found.shape[0]):
            one = plane.layer(chunk.view(np.uint16), index, ("tokens", "heads", "dim"))
            assert np.array_equal(one, whole[index])
            plane.put_layer(one, again.view(np.uint16), index, ("tokens", "heads", "dim"))
    assert np.array_equal(again, chunk)


def test_survives_the_wire() -> None:
    found = layout("amx", blocks=2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ChunkLayout) == found


@pytest.mark.parametrize(
    ("start", "dim"),
    [(2 * 3 * 32 * 2 * 32, ((32, 1),)), (0, ((32, 2000),)), (0, ((32, -1),)), (-1, ((32, 1),))],
)
def test_refuses_to_reach_outside_the_chunk(start: int, dim: Factors) -> None:
    found = layout("plain")
    bad = msgspec.structs.replace(found.keys, start=start, dim=dim)
    raw = msgspec.msgpack.encode({"dtype": "bf16", "keys": bad, "values": found.values})
    with pytest.raises(msgspec.ValidationError, match="outside"):
        msgspec.msgpack.decode(raw, type=ChunkLayout)


def test_a_page_with_holes_is_not_known() -> None:
    with pytest.raises(UnknownLayoutError, match="not exactly"):
        chunk_layout("bf16", 2 * page("vec", 32, 2, 32), 1, 1)


def test_a_shuffled_page_is_not_known() -> None:
    shuffled = np.random.default_rng(0).permutation(2 * 32 * 2 * 32).reshape(2, 32, 2, 32)
    with pytest.raises(UnknownLayoutError):
        chunk_layout("bf16", shuffled, 1, 1)


def test_a_swizzled_page_is_not_known() -> None:
    swizzled = page("plain", 32, 2, 32).copy()
    swizzled[:, 1::2, :, 1:] = swizzled[:, 1::2, :, :0:-1]  # every other token's channels backwards
    with pytest.raises(UnknownLayoutError, match="independently"):
        chunk_layout("bf16", swizzled, 1, 1)
