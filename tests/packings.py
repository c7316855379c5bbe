"""Pages as attention backends pack them, written out by hand: what the product has to find out."""

from math import prod
from typing import Literal

import numpy as np

from kvtier.codec import Bytes
from kvtier.layout import ELEMENTS, Axis, ChunkLayout, Elements, Indices, Plane, chunk_layout

Packing = Literal["plain", "vec", "amx"]
PACKINGS: tuple[Packing, ...] = ("plain", "vec", "amx")


def page(packing: Packing, tokens: int, heads: int, dim: int) -> Indices:
    """Index in a page of each element, (k/v, tokens, heads, channels)."""
    at = np.arange(2 * tokens * heads * dim)
    if packing == "plain":
        return at.reshape(2, tokens, heads, dim)
    halves = at.reshape(heads, 2, tokens * dim)  # vLLM's CPU backend: per head, keys then values
    if packing == "vec":
        keys = halves[:, 0].reshape(heads, dim, tokens).transpose(2, 0, 1)
        values = halves[:, 1].reshape(heads, tokens, dim).transpose(1, 0, 2)
    else:  # tiles of 16 rows, two bf16 to a 4-byte lane
        keys = halves[:, 0].reshape(heads, tokens // 16, dim // 2, 16, 2)
        keys = keys.transpose(1, 3, 0, 2, 4).reshape(tokens, heads, dim)
        values = halves[:, 1].reshape(heads, dim // 16, tokens // 2, 16, 2)
        values = values.transpose(2, 4, 0, 1, 3).reshape(tokens, heads, dim)
    return np.stack([keys, values])


def layout(
    packing: Packing = "vec",
    dtype: Literal["bf16", "fp16", "fp32", "fp8"] = "bf16",
    *,
    layers: int = 3,
    tokens: int = 32,
    heads: int = 2,
    dim: int = 32,
    blocks: int = 1,
) -> ChunkLayout:
    """Describe a chunk of `blocks` blocks of `tokens` tokens."""
    return chunk_layout(dtype, page(packing, tokens, heads, dim), layers, blocks)


def gather(found: ChunkLayout, chunk: Bytes, plane: Plane, order: tuple[Axis, ...]) -> Elements:
    """Return a plane with its axes in `order`."""
    view = plane.view(chunk.view(ELEMENTS[found.dtype]), order)
    return view.reshape([prod(extent for extent, _ in getattr(plane, axis)) for axis in order])


def scatter(
    found: ChunkLayout, array: Elements, chunk: Bytes, plane: Plane, order: tuple[Axis, ...]
) -> None:
    """Write a plane, whose axes are in `order`, into the chunk."""
    view = plane.view(chunk.view(ELEMENTS[found.dtype]), order)
    view[...] = array.reshape(view.shape)
