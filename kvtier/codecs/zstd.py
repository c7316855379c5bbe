"""Zstandard: one frame per chunk, its content size stated, so that a decoder knows before it allocates."""

import threading
from typing import Annotated

import msgspec
import numpy as np
import zstandard
from msgspec import Meta

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.errors import CorruptBlock


class ZstdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Level 1 is the fastest that shrinks well; the rest is zstd's own, and overrides what the level says."""

    level: Annotated[int, Meta(ge=-100, le=22)] = 1
    window_log: Annotated[int, Meta(ge=10, le=27)] | None = None
    min_match: Annotated[int, Meta(ge=3, le=7)] | None = None
    hash_log: Annotated[int, Meta(ge=6, le=26)] | None = None


class ZstdCodec(Codec):
    """Compress with one context per thread."""

    id = 2
    name = "zstd"
    Config = ZstdConfig

    def __init__(self, config: ZstdConfig = ZstdConfig()) -> None:  # noqa: B008 - frozen
        self._contexts = _Contexts(config)

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        frame = self._contexts.compressor.compress(chunk.data)
        if len(frame) > min(len(chunk), len(out)):
            return None
        out[: len(frame)] = np.frombuffer(frame, np.uint8)
        return len(frame)

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        try:
            decode_frame(self._contexts.decompressor, buf, out)
        except zstandard.ZstdError as exc:
            raise CorruptBlock(f"zstd: {exc}") from exc


class _Contexts(threading.local):
    def __init__(self, config: ZstdConfig) -> None:
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters(config))
        self.decompressor = zstandard.ZstdDecompressor()


def decode_frame(decompressor: zstandard.ZstdDecompressor, buf: Bytes, out: Bytes) -> None:
    """Decode one frame straight into `out`.

    Raises:
        CorruptBlock: `buf` is not exactly one whole frame, or of another size.
        ZstdError: the frame is damaged.
    """
    stated = zstandard.frame_content_size(buf.data)
    if stated != len(out):
        raise CorruptBlock(f"zstd frame of {stated} bytes for a chunk of {len(out)}")
    if _frame_nbytes(buf.data) != len(buf):
        raise CorruptBlock("zstd: more, or less, than a frame")
    with decompressor.stream_reader(buf.data) as reader:
        # Reading on past the end makes zstd compare a checksum, where the frame has one.
        if reader.readinto(out.data) != len(out) or reader.read(1):
            raise CorruptBlock("zstd frame of another size than it states")


def _frame_nbytes(buf: memoryview) -> int:
    """Add up a frame's blocks by their headers (RFC 8878, 3.1.1): a stream reader ignores what follows them."""
    at, last = zstandard.frame_header_size(buf), 0
    while not last and at + 3 <= len(buf):
        header = int.from_bytes(buf[at : at + 3], "little")
        last, repeated = header & 1, header >> 1 & 3 == 1
        at += 3 + (1 if repeated else header >> 3)
    return at + 4 * zstandard.get_frame_parameters(buf).has_checksum


def parameters(config: ZstdConfig) -> zstandard.ZstdCompressionParameters:
    """Return the parameters of a level, but for those that are given."""
    own = {key: value for key, value in msgspec.structs.asdict(config).items() if value is not None}
    return zstandard.ZstdCompressionParameters.from_level(own.pop("level"), **own)
