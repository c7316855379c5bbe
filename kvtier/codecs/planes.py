"""Planes of bytes: the exponents of all elements together, then what is noise in every element.

The mantissas of a trained model's keys and values carry nearly 8 bits in 8, their exponents less than 3.
fp8 keeps its bytes: exponent and mantissa share one, and apart they would carry more.
"""

from enum import IntEnum
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.codecs.scratch import Scratch
from kvtier.errors import CorruptBlock

Halves = npt.NDArray[np.uint16]


class Split(IntEnum):
    """What the last byte of the payload says of the planes before it."""

    NONE = 0  # the chunk as it is
    BYTES_16 = 1  # upper bytes, lower bytes
    EXPONENT_16 = 2  # bits 7 to 14 (the exponent of bf16), then bits 0 to 6 below bit 15
    EXPONENT_32 = 3  # the same of the upper halves, then the lower halves


_WIDTHS = {Split.NONE: 1, Split.BYTES_16: 2, Split.EXPONENT_16: 2, Split.EXPONENT_32: 4}


class PlanesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`exponent` keeps the sign with the mantissa, `bytes` with the exponent."""

    split: Literal["exponent", "bytes"] = "exponent"


class PlanesCodec(Codec):
    """Split elements of 16 or 32 bits, by the chunk's dtype; 16 where it is not known."""

    id = 4
    name = "planes"
    shrinks = False
    Config = PlanesConfig

    def __init__(self, config: PlanesConfig = PlanesConfig()) -> None:  # noqa: B008 - frozen
        wide = Split.EXPONENT_16 if config.split == "exponent" else Split.BYTES_16
        self._splits = {"fp8": Split.NONE, "fp32": Split.EXPONENT_32}
        self._default = wide
        self._scratch = Scratch()

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        n = len(chunk)
        if n >= len(out):
            return None
        split = self._splits.get(facts.dtype, self._default)
        whole = n // _WIDTHS[split] * _WIDTHS[split]
        out[whole:n] = chunk[whole:]
        out[n] = split
        if split == Split.NONE:
            out[:whole] = chunk[:whole]
        elif split == Split.BYTES_16:
            out[: whole // 2] = chunk[1:whole:2]
            out[whole // 2 : whole] = chunk[:whole:2]
        elif split == Split.EXPONENT_16:
            self._split(chunk[:whole].view(np.uint16), out)
        else:
            halves = chunk[:whole].view(np.uint16)
            self._split(halves[1::2], out)
            out[whole // 2 : whole].view(np.uint16)[:] = halves[::2]
        return n + 1

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        n = len(out)
        if len(buf) != n + 1 or buf[n] not in _WIDTHS:
            raise CorruptBlock(f"{len(buf)} bytes are no planes of a chunk of {n}")
        split = Split(int(buf[n]))
        whole = n // _WIDTHS[split] * _WIDTHS[split]
        out[whole:] = buf[whole:n]
        if split == Split.NONE:
            out[:whole] = buf[:whole]
        elif split == Split.BYTES_16:
            out[1:whole:2] = buf[: whole // 2]
            out[:whole:2] = buf[whole // 2 : whole]
        elif split == Split.EXPONENT_16:
            self._merge(buf, out[:whole].view(np.uint16))
        else:
            halves = out[:whole].view(np.uint16)
            self._merge(buf, halves[1::2])
            halves[::2] = buf[whole // 2 : whole].view(np.uint16)

    def _split(self, halves: Halves, out: Bytes) -> None:
        n = len(halves)
        exponents, rest, shifted = out[:n], out[n : 2 * n], self._halves(n)
        np.left_shift(halves, 1, out=shifted)
        np.right_shift(shifted, 8, out=shifted)
        np.copyto(exponents, shifted, casting="unsafe")
        np.right_shift(halves, 8, out=shifted)
        np.bitwise_and(shifted, 0x80, out=shifted)
        np.copyto(rest, halves, casting="unsafe")
        np.bitwise_and(rest, 0x7F, out=rest)
        signs = self._scratch.room(1, n)
        np.copyto(signs, shifted, casting="unsafe")
        np.bitwise_or(rest, signs, out=rest)

    def _merge(self, buf: Bytes, halves: Halves) -> None:
        n = len(halves)
        exponents, rest, shifted = buf[:n], buf[n : 2 * n], self._halves(n)
        np.copyto(halves.view(np.int16), rest.view(np.int8))  # the sign reaches bit 15, and between
        np.bitwise_and(halves, 0x807F, out=halves)
        np.copyto(shifted, exponents)
        np.left_shift(shifted, 7, out=shifted)
        np.bitwise_or(halves, shifted, out=halves)

    def _halves(self, n: int) -> Halves:
        return self._scratch.room(0, 2 * n).view(np.uint16)
