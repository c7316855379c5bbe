"""What goes over the worker's pipe: frames of a length, a kind and a msgpack body. No pickle.

The client sends one SETUP, then OPS; the I/O process answers one HELLO, then RESULTS and SCAN.
"""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec

from kvtier.codec import ChunkFacts
from kvtier.io_process.weights import Unread
from kvtier.layout import ChunkLayout
from kvtier.types import OpResult, Placed, ScanBatch, TierOp

_HEAD = struct.Struct("<IB")
_MAX_NBYTES = 64 << 20


class FrameKind(IntEnum):
    """What a frame's body is."""

    SETUP = 0  # IoSetup
    HELLO = 1  # Ready
    OPS = 2  # list[TierOp]
    RESULTS = 3  # list[OpResult]
    SCAN = 4  # ScanBatch
    PLACED = 5  # list[Placed]: where all memory of this process's tiers is now


class IoSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an I/O process needs to know; the first frame it gets."""

    rank: int = 0
    local_ranks: int = 1  # of this engine on this node
    copies: bool = False  # all of them have the same KV
    engine: int | None = None  # which of several data-parallel engines; None: the only one
    engines: int = 1  # how many of them are on this node
    arena_nbytes: int
    slot_nbytes: int  # a multiple of 4 KiB
    group_nbytes: dict[int, int]  # raw bytes of one chunk on this rank, per KV-cache group
    layouts: dict[int, ChunkLayout | str] = {}  # of a chunk of each group, or why it is not known
    kv_dtype: str = ""  # of the elements, where no layout says it: bf16, fp16, fp32, fp8
    # Builtins of each lower tier's TierConfig, its capacity this rank's; TierOp.tier 1 is the first.
    tiers: list[dict[str, object]]
    threads: int = 8
    idle_write_bytes_per_s: float = 256 << 20
    queue: int = 4096  # operations pending at once, per tier; more are refused
    log_level: str = "INFO"
    numa_node: int | None = None
    # Memory for its tiers at the engine's start; None: what is free.
    spare_nbytes: int | None = None
    weights: Unread | None = None  # what this process reads beside its work

    def facts(self, group: int) -> ChunkFacts:
        """Say what is known of a group's chunks."""
        layout = self.layouts.get(group, "nobody said")
        if isinstance(layout, str):
            return ChunkFacts(self.kv_dtype, None, layout)
        if layout.nbytes != self.group_nbytes[group]:
            why = f"a layout of {layout.nbytes} bytes, a chunk of {self.group_nbytes[group]}"
            return ChunkFacts(self.kv_dtype, None, why)
        return ChunkFacts(layout.dtype, layout)


class Ready(msgspec.Struct, frozen=True):
    """The I/O process is ready, or why it never will be."""

    error: str = ""


class Frame(NamedTuple):
    """One frame as it arrived."""

    kind: int
    body: bytes


class FrameBuffer:
    """Cut a byte stream into frames. One thread."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append what the socket gave."""
        self._buffer += data

    def frames(self) -> Iterator[Frame]:
        """Take the whole frames out; may be left early, the rest stays."""
        while len(self._buffer) >= _HEAD.size:
            nbytes, kind = _HEAD.unpack_from(self._buffer)
            if nbytes > _MAX_NBYTES:
                raise ValueError(f"a frame of {nbytes} bytes")
            end = _HEAD.size + nbytes
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield Frame(kind, body)


_encoder = msgspec.msgpack.Encoder()
SETUP = msgspec.msgpack.Decoder(IoSetup)
HELLO = msgspec.msgpack.Decoder(Ready)
OPS = msgspec.msgpack.Decoder(list[TierOp])
RESULTS = msgspec.msgpack.Decoder(list[OpResult])
SCAN = msgspec.msgpack.Decoder(ScanBatch)
PLACED = msgspec.msgpack.Decoder(list[Placed])
"""What decodes the body of each kind of frame."""


def frame(
    kind: FrameKind, body: IoSetup | Ready | ScanBatch | Sequence[TierOp | OpResult | Placed]
) -> bytes:
    """Encode one frame."""
    encoded = _encoder.encode(body)
    return _HEAD.pack(len(encoded), kind) + encoded
