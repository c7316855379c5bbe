"""Where keys and values lie inside a chunk: which element is which layer, token, head and channel.

A layout is plain numbers, found at start by whoever can write known values into a page. Where an
attention backend packs in a way that no mixed radix describes, there is none and this says why.
"""

from math import prod
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Factors = tuple[tuple[int, int], ...]
"""One axis as digits, slowest first: (extent, stride in elements); packed axes have several."""

Axis = Literal["layers", "tokens", "heads", "dim"]
Elements = npt.NDArray[np.generic]
Indices = npt.NDArray[np.int64]

ELEMENTS = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32, "fp8": np.uint8}
"""How numpy holds an element of each type; bf16 and fp8, which it does not know, as their bits."""


class UnknownLayoutError(ValueError):
    """The bytes of a page cannot be told apart; the message says why."""


class Plane(msgspec.Struct, frozen=True, kw_only=True):
    """The keys, or the values, of a chunk."""

    start: int  # of the first element
    layers: Factors
    tokens: Factors
    heads: Factors
    dim: Factors

    def view(self, elements: Elements, order: tuple[Axis, ...]) -> Elements:
        """View this plane with its axes in `order`, a dimension per digit."""
        digits = [digit for axis in order for digit in getattr(self, axis)]
        return np.lib.stride_tricks.as_strided(
            elements[self.start :],
            [extent for extent, _ in digits],
            [stride * elements.itemsize for _, stride in digits],
        )

    def layer(self, elements: Elements, index: int, order: tuple[Axis, ...]) -> Elements:
        """Return one layer with its axes in `order`; a copy where it cannot be a view, so only to read."""
        ((_, stride),) = self.layers
        one = msgspec.structs.replace(self, start=self.start + index * stride, layers=())
        shape = [prod(extent for extent, _ in getattr(self, axis)) for axis in order]
        return one.view(elements, order).reshape(shape)

    def put_layer(
        self, array: Elements, elements: Elements, index: int, order: tuple[Axis, ...]
    ) -> None:
        """Write one layer, whose axes are in `order`; what is wider is cast."""
        ((_, stride),) = self.layers
        one = msgspec.structs.replace(self, start=self.start + index * stride, layers=())
        view = one.view(elements, order)
        np.copyto(view, array.reshape(view.shape), casting="unsafe")

    @property
    def end(self) -> int:
        """One more than the index of its last element."""
        return self.start + sum((extent - 1) * stride for extent, stride in self._digits) + 1

    @property
    def lowest(self) -> int:
        """The least of its start and strides; below zero nothing is certain."""
        return min(self.start, *(stride for _, stride in self._digits))

    @property
    def _digits(self) -> Factors:
        return (*self.layers, *self.tokens, *self.heads, *self.dim)


class ChunkLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The elements of one chunk: `dtype` each, keys and values of equal shape, nothing else."""

    dtype: Literal["bf16", "fp16", "fp32", "fp8"]
    keys: Plane
    values: Plane

    def __post_init__(self) -> None:
        n = 2 * prod(self.shape)
        for plane in (self.keys, self.values):
            if plane.end > n or plane.lowest < 0:
                raise ValueError(f"a layout of {n} elements reaches outside of them")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, tokens, heads, channels of each."""
        layers, tokens, heads, dim = (
            prod(extent for extent, _ in getattr(self.keys, axis))
            for axis in ("layers", "tokens", "heads", "dim")
        )
        return layers, tokens, heads, dim

    @property
    def nbytes(self) -> int:
        """Bytes of the chunk."""
        return 2 * prod(self.shape) * np.dtype(ELEMENTS[self.dtype]).itemsize


def chunk_layout(
    dtype: Literal["bf16", "fp16", "fp32", "fp8"], page: Indices, layers: int, blocks: int
) -> ChunkLayout:
    """Describe a chunk: per layer one page per block, all alike.

    Args:
        page: index in a page of each element, shape (k/v, tokens, heads, channels).

    Raises:
        UnknownLayoutError: the page has holes, or is packed in no regular way.
    """
    if not np.array_equal(np.sort(page, axis=None), np.arange(page.size)):
        raise UnknownLayoutError("a page is not exactly its keys and values")
    keys, values = (_plane(each, page.size, layers, blocks) for each in page)
    return ChunkLayout(dtype=dtype, keys=keys, values=values)


def _plane(page: Indices, page_elements: int, layers: int, blocks: int) -> Plane:
    start = int(page[0, 0, 0])
    lines = [page[:, 0, 0] - start, page[0, :, 0] - start, page[0, 0, :] - start]
    tokens, heads, dim = (_digits(line) for line in lines)
    if not np.array_equal(page, start + lines[0][:, None, None] + lines[1][:, None] + lines[2]):
        raise UnknownLayoutError("tokens, heads and channels are not packed independently")
    return Plane(
        start=start,
        layers=((layers, blocks * page_elements),),
        tokens=((blocks, page_elements), *tokens) if blocks > 1 else tokens,
        heads=heads,
        dim=dim,
    )


def _digits(line: Indices) -> Factors:
    """Write the offsets along one axis as a mixed radix."""
    if len(line) == 1:
        return ((1, 0),)
    step = int(line[1])
    run = 2
    while run < len(line) and line[run] == run * step:
        run += 1
    outer = line[::run]
    if len(line) % run or not np.array_equal(
        line, np.add.outer(outer, np.arange(run) * step).ravel()
    ):
        raise UnknownLayoutError("an axis is packed in no regular way")
    return ((run, step),) if len(outer) == 1 else (*_digits(outer), (run, step))
