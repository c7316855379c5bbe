"""Keys and values as float32 and back: bfloat16, float16, float32, and fp8 e4m3 as a grid of its own."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Elements = npt.NDArray[np.generic]

E4M3_MAX = 448.0


def widen_bf16(bits: Elements) -> Floats:
    """Turn bf16 bits into float32; exact."""
    wide = np.empty(bits.shape, np.uint32)
    np.left_shift(bits, 16, out=wide, dtype=np.uint32, casting="unsafe")
    return wide.view(np.float32)


def narrow_bf16(values: Floats) -> npt.NDArray[np.uint32]:
    """Round float32 to bf16 bits, in place: the upper half is lost. Exact for what was a bf16."""
    bits = values.view(np.uint32)
    bits += np.uint32(0x8000)
    bits >>= np.uint32(16)
    return bits


def floor_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round finite float32 down to bf16 bits."""
    carry = np.where(values < 0, np.uint32(0xFFFF), np.uint32(0))
    upper: npt.NDArray[np.uint32] = (values.view(np.uint32) + carry) >> np.uint32(16)
    return upper.astype(np.uint16)


def ceil_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round finite float32 up to bf16 bits."""
    carry = np.where(values > 0, np.uint32(0xFFFF), np.uint32(0))
    upper: npt.NDArray[np.uint32] = (values.view(np.uint32) + carry) >> np.uint32(16)
    return upper.astype(np.uint16)


def encode_e4m3(values: Floats) -> npt.NDArray[np.uint8]:
    """Round float32 of at most 448 in size to e4m3 bits (1-4-3, bias 7, OCP 8-bit floating point)."""
    # Scaled by 2**-8, e4m3 and float16 (1-5-10, bias 15) have the same exponents, subnormals included.
    half = (values * np.float32(2**-8)).astype(np.float16).view(np.uint16)
    half = half + np.uint16(0x3F) + (half >> 7 & 1)  # to the nearest, to even
    return (half >> 8 & 0x80 | half >> 7 & 0x7F).astype(np.uint8)


def _e4m3_values() -> Floats:
    bits = np.arange(256, dtype=np.uint16)
    half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).view(np.float16)
    return half.astype(np.float32) * np.float32(2**8)


E4M3 = _e4m3_values()
"""The value of each e4m3 code; the two codes of NaN are 480 here and never written."""


def _as_float32(values: Elements) -> Floats:
    return values.astype(np.float32)


def _same(values: Floats) -> Elements:
    return values


WIDEN: dict[str, Callable[[Elements], Floats]] = {
    "bf16": widen_bf16,
    "fp16": _as_float32,
    "fp32": _as_float32,
}
NARROW: dict[str, Callable[[Floats], Elements]] = {
    "bf16": narrow_bf16,
    "fp16": _same,
    "fp32": _same,
}
"""Conversions per element type; what NARROW returns is cast by the assignment that stores it."""
