"""Zstandard: one frame per chunk, its content size stated, so that a decoder knows before it allocates."""

import threading
from typing import Annotated

import msgspec
import numpy as np
import zstandard

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.errors import CorruptBlock


class ZstdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Level 1 is the fastest that shrinks well; negative levels are faster still."""

    level: Annotated[int, msgspec.Meta(ge=-100, le=22)] = 1


class ZstdCodec(Codec):
    """Compress with one context per thread."""

    id = 2
    name = "zstd"
    Config = ZstdConfig

    def __init__(self, config: ZstdConfig = ZstdConfig()) -> None:  # noqa: B008 - frozen
        self._contexts = _Contexts(config.level)

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        frame = self._contexts.compressor.compress(chunk.data)
        if len(frame) > min(len(chunk), len(out)):
            return None
        out[: len(frame)] = np.frombuffer(frame, np.uint8)
        return len(frame)

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        try:
            stated = zstandard.frame_content_size(buf.data)
            if stated != len(out):
                raise CorruptBlock(f"zstd frame of {stated} bytes for a chunk of {len(out)}")
            chunk = self._contexts.decompressor.decompress(buf.data, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise CorruptBlock(f"zstd: {exc}") from exc
        out[:] = np.frombuffer(chunk, np.uint8)


class _Contexts(threading.local):
    def __init__(self, level: int) -> None:
        self.compressor = zstandard.ZstdCompressor(level=level)
        self.decompressor = zstandard.ZstdDecompressor()
