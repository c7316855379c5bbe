"""The payload of quantised keys and values: a head that says how, then scales and codes, layer by layer."""

import struct
from typing import NamedTuple

import numpy as np

from kvtier.codec import Bytes
from kvtier.codecs import grid
from kvtier.codecs.elements import NARROW, WIDEN, Elements, Floats
from kvtier.codecs.grid import FP8, Codes, Grid, Scales
from kvtier.codecs.hadamard import rotatable, rotate
from kvtier.errors import CorruptBlock
from kvtier.layout import ELEMENTS, Axis, ChunkLayout, Plane

# offset  bytes  field
#      0      1  format version
#      1      1  bits of a key; 0: fp8 (e4m3)
#      2      1  bits of a value; 0: fp8
#      3      1  1: keys and values are rotated (Hadamard) over channels
#      4      2  tokens of a key that share a scale
#      6      2  channels of a value that share a scale
#      8      2  tokens at the start that follow raw
#     10      6  zeros
# then per layer: of the keys (heads, channels, tokens) the scales, the lowest values and the codes; of the
# values (heads, tokens, channels) the scales and the codes; at last the raw tokens per layer, keys and values.
_HEAD = struct.Struct("<BBBBHHH6x")
_VERSION = 1
MAX_SINKS = 64

_KEYS: tuple[Axis, ...] = ("heads", "dim", "tokens")
_VALUES: tuple[Axis, ...] = ("heads", "tokens", "dim")


class Side(NamedTuple):
    """The keys or the values of a chunk: where they are, how one layer of them is laid out and quantised."""

    plane: Plane
    order: tuple[Axis, ...]
    shape: tuple[int, ...]  # of one layer in that order; scales run along the last axis
    grid: Grid

    @property
    def rows(self) -> int:
        """How often the last axis occurs in a layer."""
        return self.shape[0] * self.shape[1]

    @property
    def scales_nbytes(self) -> int:
        """Bytes of a layer's scales and lowest values."""
        return self.grid.groups_nbytes(self.rows * self.shape[2])

    @property
    def codes_nbytes(self) -> int:
        """Bytes of a layer's codes."""
        return self.grid.codes_nbytes(self.rows * self.shape[2])

    def sections(self, buf: Bytes, at: int) -> tuple[Scales, Codes, int]:
        """View scales and codes of one layer at `at`, and say where they end."""
        middle = at + self.scales_nbytes
        end = middle + self.codes_nbytes
        params = buf[at:middle].view(np.uint16).reshape(self.grid.params, self.rows, -1)
        return params, buf[middle:end].reshape(self.rows, -1), end

    def tokens_first(self, values: Elements) -> Elements:
        """View one layer with its tokens as the first axis."""
        return values.swapaxes(self.order.index("tokens"), 0)


class Format(NamedTuple):
    """What the head says; fitted to a chunk, so that every group is whole and every packed row even."""

    key_bits: int
    value_bits: int
    hadamard: bool
    key_group: int
    value_group: int
    sinks: int

    def fitted(self, layout: ChunkLayout, end_token: int) -> "Format":
        """Fit what was asked for to a chunk that ends at `end_token` of its sequence."""
        _, tokens, _, dim = layout.shape
        return Format(
            key_bits=_unpacked(self.key_bits, tokens),
            value_bits=_unpacked(self.value_bits, dim),
            hadamard=self.hadamard and rotatable(dim),
            key_group=Grid(0, self.key_group, affine=True).fitted(tokens).group,
            value_group=Grid(0, self.value_group, affine=False).fitted(dim).group,
            sinks=min(self.sinks, tokens) if 0 < end_token <= tokens else 0,
        )

    @classmethod
    def parse(cls, buf: Bytes, layout: ChunkLayout) -> "Format":
        """Read the head back; one that is none, or not of a chunk with this layout, is a CorruptBlock."""
        if len(buf) < _HEAD.size:
            raise CorruptBlock("quantised: cut short")
        version, key_bits, value_bits, rotated, *rest = _HEAD.unpack_from(buf)
        if version != _VERSION or rotated > 1:
            raise CorruptBlock(f"quantised: version {version}, rotation {rotated}")
        self = cls(key_bits, value_bits, bool(rotated), *rest)
        if self.sinks > MAX_SINKS or self != self.fitted(layout, 1 if self.sinks else 0):
            raise CorruptBlock("quantised: no such widths, groups or raw tokens")
        if not {key_bits, value_bits} <= {FP8, *range(2, 9)}:
            raise CorruptBlock(f"quantised: keys of {key_bits} bits, values of {value_bits}")
        if len(buf) != self.nbytes(layout):
            raise CorruptBlock(f"quantised: {len(buf)} bytes, expected {self.nbytes(layout)}")
        return self

    def sides(self, layout: ChunkLayout) -> tuple[Side, Side]:
        """The keys and the values."""
        _, tokens, heads, dim = layout.shape
        key_grid = Grid(self.key_bits, self.key_group, affine=True)
        value_grid = Grid(self.value_bits, self.value_group, affine=False)
        return (
            Side(layout.keys, _KEYS, (heads, dim, tokens), key_grid),
            Side(layout.values, _VALUES, (heads, tokens, dim), value_grid),
        )

    def nbytes(self, layout: ChunkLayout) -> int:
        """Length of the payload."""
        layers = layout.shape[0]
        sides = self.sides(layout)
        quantised = layers * sum(side.scales_nbytes + side.codes_nbytes for side in sides)
        return _HEAD.size + quantised + 2 * layers * self._raw_nbytes(layout)

    def encode(self, layout: ChunkLayout, chunk: Bytes, out: Bytes) -> bool:
        """Write the payload; False where a value is not finite."""
        _HEAD.pack_into(out, 0, _VERSION, *self)
        elements = chunk.view(ELEMENTS[layout.dtype])
        at, raw_at = _HEAD.size, self.nbytes(layout) - self._all_raw_nbytes(layout)
        for layer in range(layout.shape[0]):
            for side in self.sides(layout):
                found = side.plane.layer(elements, layer, side.order)
                raw = np.ascontiguousarray(side.tokens_first(found)[: self.sinks])
                out[raw_at : raw_at + raw.nbytes] = raw.reshape(-1).view(np.uint8)
                raw_at += raw.nbytes
                params, codes, at = side.sections(out, at)
                values = self._prepared(side, WIDEN[layout.dtype](found))
                if not grid.quantise(values, side.grid, params, codes):
                    return False
        return True

    def decode(self, layout: ChunkLayout, buf: Bytes, out: Bytes) -> None:
        """Fill the chunk from a payload that `parse` has seen."""
        elements = out.view(ELEMENTS[layout.dtype])
        at, raw_at = _HEAD.size, len(buf) - self._all_raw_nbytes(layout)
        raw_nbytes = self._raw_nbytes(layout)
        for layer in range(layout.shape[0]):
            for side in self.sides(layout):
                params, codes, at = side.sections(buf, at)
                values = grid.restore(params, codes, side.grid).reshape(side.shape)
                if self.hadamard:
                    values = rotate(values, side.order.index("dim"))
                tokens = side.tokens_first(values)
                raw = buf[raw_at : raw_at + raw_nbytes].copy().view(elements.dtype)
                tokens[: self.sinks] = WIDEN[layout.dtype](raw.reshape(tokens[: self.sinks].shape))
                raw_at += raw_nbytes
                side.plane.put_layer(NARROW[layout.dtype](values), elements, layer, side.order)

    def _prepared(self, side: Side, values: Floats) -> Floats:
        """Return rows to quantise; raw tokens are outliers that no scale has to reach."""
        tokens = side.tokens_first(values)
        if 0 < self.sinks < len(tokens):
            tokens[: self.sinks] = tokens[self.sinks]
        if self.hadamard:
            values = rotate(values, side.order.index("dim"))
        return np.ascontiguousarray(values).reshape(side.rows, -1)

    def _raw_nbytes(self, layout: ChunkLayout) -> int:
        """Bytes of the raw tokens of one layer, keys or values alone."""
        _, _, heads, dim = layout.shape
        return self.sinks * heads * dim * np.dtype(ELEMENTS[layout.dtype]).itemsize

    def _all_raw_nbytes(self, layout: ChunkLayout) -> int:
        return 2 * layout.shape[0] * self._raw_nbytes(layout)


def _unpacked(bits: int, extent: int) -> int:
    """Widen what would share bytes where the rows are odd."""
    return 5 if 0 < bits < 5 and extent % 2 else bits
