"""One plane of one layer on a grid: groups of values that share a scale, and for keys also a lowest value."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.codecs.elements import (
    E4M3,
    E4M3_MAX,
    Floats,
    ceil_bf16,
    encode_e4m3,
    floor_bf16,
    widen_bf16,
)

FP8 = 0  # in place of a width in bits
_LEAST = np.float32(1e-36)  # a scale below it is none: the group is constant

Codes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.uint16]


class Grid(NamedTuple):
    """How a plane is quantised along its last axis."""

    bits: int  # 2 to 8, or FP8
    group: int  # values that share a scale
    affine: bool  # a lowest value per group too; else the grid is symmetric about zero

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return 0 < self.bits <= 4

    @property
    def params(self) -> int:
        """Numbers (bf16) per group."""
        return 2 if self.affine and self.bits != FP8 else 1

    @property
    def lowest(self) -> np.float32:
        """The least value of a symmetric grid, in steps."""
        return np.float32(1 - 2 ** (self.bits - 1))

    def fitted(self, extent: int) -> "Grid":
        """Shorten the groups to what divides `extent`."""
        return self._replace(group=math.gcd(self.group, extent) if self.group else extent)

    def groups_nbytes(self, values: int) -> int:
        """Bytes of the scales of so many values."""
        return 2 * self.params * (values // self.group)

    def codes_nbytes(self, values: int) -> int:
        """Bytes of the codes of so many values."""
        return values // 2 if self.packed else values


def quantise(values: Floats, grid: Grid, params: Scales, codes: Codes) -> bool:
    """Fill `params` and `codes`, shape (rows, ...) each, from `values` (rows, extent), which it overwrites.

    Returns:
        False where the values have no grid: one of them is not finite.
    """
    grouped = values.reshape(len(values), -1, grid.group)
    _fit(grouped, grid, params)
    scale, low = _grid(params, grid)
    if not (np.isfinite(scale).all() and np.isfinite(low).all()):
        return False
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    grouped -= low[..., None]
    grouped *= inverse[..., None]
    if grid.bits == FP8:
        codes[...] = encode_e4m3(values)
        return True
    np.rint(values, out=values)
    np.clip(values, 0, 2**grid.bits - 1, out=values)
    _pack(values.astype(np.uint8), grid, codes)
    return True


def _fit(grouped: Floats, grid: Grid, params: Scales) -> None:
    """Choose each group's scale, rounded up, and lowest value, rounded down."""
    if grid.bits == FP8:
        scale = np.abs(grouped).max(-1) / np.float32(E4M3_MAX)
    elif grid.affine:
        params[1] = floor_bf16(grouped.min(-1))
        scale = (grouped.max(-1) - widen_bf16(params[1])) / np.float32(2**grid.bits - 1)
    else:
        scale = np.abs(grouped).max(-1) / -grid.lowest
    scale[scale < _LEAST] = 0
    params[0] = ceil_bf16(scale)


def _grid(params: Scales, grid: Grid) -> tuple[Floats, Floats]:
    """Return scale and lowest value of each group as they are stored."""
    scale = widen_bf16(params[0])
    if grid.bits == FP8:
        return scale, np.zeros_like(scale)
    return scale, widen_bf16(params[1]) if grid.affine else scale * grid.lowest


def _pack(whole: Codes, grid: Grid, codes: Codes) -> None:
    if not grid.packed:
        codes[...] = whole
        return
    # The first half of a row goes into the low nibbles, the second into the high ones.
    half_row = whole.shape[1] // 2
    np.left_shift(whole[:, half_row:], 4, out=codes)
    codes |= whole[:, :half_row]


def _unpack(codes: Codes, grid: Grid) -> Floats:
    if grid.bits == FP8:
        return E4M3[codes]
    if not grid.packed:
        return codes.astype(np.float32)
    half_row = codes.shape[1]
    values = np.empty((len(codes), 2 * half_row), np.float32)
    np.bitwise_and(codes, 15, out=values[:, :half_row], casting="unsafe", dtype=np.uint8)
    np.right_shift(codes, 4, out=values[:, half_row:], casting="unsafe", dtype=np.uint8)
    return values


def restore(params: Scales, codes: Codes, grid: Grid) -> Floats:
    """Return the values (rows, extent) that `codes` stand for."""
    values = _unpack(codes, grid)
    grouped = values.reshape(len(values), -1, grid.group)
    scale, low = _grid(params, grid)
    grouped *= scale[..., None]
    if grid.bits != FP8:
        grouped += low[..., None]
    return values
