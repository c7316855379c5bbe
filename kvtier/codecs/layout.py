"""A chunk's elements in another order: neighbours that resemble each other compress better.

The order is chosen for compression; it changes no element, and a chunk without a known layout passes as it is.
"""

from typing import Literal

import msgspec
import numpy as np

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.errors import CorruptBlock
from kvtier.layout import ELEMENTS, Axis, ChunkLayout

ORDERS: dict[str, tuple[int, tuple[Axis, ...]]] = {
    "layer": (1, ("layers", "heads", "tokens", "dim")),
    "token": (2, ("tokens", "layers", "heads", "dim")),
    "channel": (3, ("layers", "heads", "dim", "tokens")),
}
"""Name: what the payload's last byte says, and the axes, slowest first. 0 is the order of the chunk itself."""
_BY_NUMBER = dict(ORDERS.values())


class LayoutConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which axis is the slowest; of `channel`, tokens are the fastest."""

    order: Literal["layer", "token", "channel"] = "layer"


class LayoutCodec(Codec):
    """Put all keys before all values, each in one order, whatever the attention backend's packing is."""

    id = 5
    name = "layout"
    shrinks = False
    Config = LayoutConfig

    def __init__(self, config: LayoutConfig = LayoutConfig()) -> None:  # noqa: B008 - frozen
        self._number, self._order = ORDERS[config.order]

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        n, layout = len(chunk), facts.layout
        if n >= len(out):
            return None
        if layout is None or layout.nbytes != n:
            out[:n] = chunk
            out[n] = 0
            return n + 1
        for plane, half in zip((layout.keys, layout.values), np.split(out[:n], 2), strict=True):
            view = plane.view(chunk.view(ELEMENTS[layout.dtype]), self._order)
            half.view(view.dtype).reshape(view.shape)[...] = view
        out[n] = self._number
        return n + 1

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        n = len(out)
        if len(buf) != n + 1:
            raise CorruptBlock(f"{len(buf)} bytes are no reordering of a chunk of {n}")
        if buf[n] == 0:
            out[:] = buf[:n]
        else:
            _restore(buf, out, facts.layout)


def _restore(buf: Bytes, out: Bytes, layout: ChunkLayout | None) -> None:
    n = len(out)
    order = _BY_NUMBER.get(int(buf[n]))
    if order is None or layout is None or layout.nbytes != n:
        raise CorruptBlock(f"order {buf[n]} of a chunk whose layout is not known")
    for plane, half in zip((layout.keys, layout.values), np.split(buf[:n], 2), strict=True):
        view = plane.view(out.view(ELEMENTS[layout.dtype]), order)
        view[...] = half.view(view.dtype).reshape(view.shape)
