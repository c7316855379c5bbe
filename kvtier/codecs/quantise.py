"""Keys and values on grids of few bits: lossy. Keys per channel over tokens, values per token over channels.

Outliers of keys sit in channels, of values in tokens (KIVI, arXiv 2402.02750); the first tokens of a
sequence draw attention out of proportion (StreamingLLM, arXiv 2309.17453) and stay exact.
"""

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.codecs.elements import WIDEN
from kvtier.codecs.grid import FP8
from kvtier.codecs.hadamard import rotatable
from kvtier.codecs.quantised import MAX_SINKS, Format
from kvtier.errors import CorruptBlock

Width = Annotated[int, Meta(ge=2, le=8)] | Literal["fp8"]


class QuantiseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bits of a key and of a value, 2 to 8 or `fp8`; an entropy stage should follow."""

    k: Width = 8
    v: Width = 8
    key_group: Annotated[int, Meta(ge=0, le=4096)] = 0  # tokens that share a scale; 0: the chunk's
    value_group: Annotated[int, Meta(ge=8, le=4096)] = 64  # channels that share a scale
    hadamard: bool = False
    sinks: Annotated[int, Meta(ge=0, le=MAX_SINKS)] = 4  # tokens at the sequence's start kept raw


class QuantiseCodec(Codec):
    """Quantise where the layout is known; a chunk with a value that is not finite stays raw."""

    id = 16
    name = "quantise"
    lossy = True
    needs_layout = True
    Config = QuantiseConfig

    def __init__(self, config: QuantiseConfig = QuantiseConfig()) -> None:  # noqa: B008 - frozen
        self._format = Format(
            _bits(config.k),
            _bits(config.v),
            config.hadamard,
            config.key_group,
            config.value_group,
            config.sinks,
        )

    def objection(self, facts: ChunkFacts) -> str:
        if why := super().objection(facts):
            return why
        assert facts.layout is not None
        dtype, dim = facts.layout.dtype, facts.layout.shape[3]
        if dtype not in WIDEN:
            return f"keys and values are {dtype} already; use lossless"
        if self._format.hadamard and not rotatable(dim):
            return f"hadamard needs a power of two of channels per head, not {dim}"
        return ""

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        layout = facts.layout
        if layout is None or layout.nbytes != len(chunk) or layout.dtype not in WIDEN:
            return None
        fitted = self._format.fitted(layout, facts.end_token)
        nbytes = fitted.nbytes(layout)
        if nbytes > len(out):
            return None
        with np.errstate(all="ignore"):
            return nbytes if fitted.encode(layout, chunk, out) else None

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        layout = facts.layout
        if layout is None or layout.dtype not in WIDEN:
            raise CorruptBlock("quantised, and where keys and values lie is not known")
        if layout.nbytes != len(out):
            raise CorruptBlock(f"quantised: {layout.nbytes} bytes for a chunk of {len(out)}")
        with np.errstate(all="ignore"):
            Format.parse(buf, layout).decode(layout, buf, out)


def _bits(width: int | str) -> int:
    return width if isinstance(width, int) else FP8
