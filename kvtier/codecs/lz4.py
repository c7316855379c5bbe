"""LZ4: one block per chunk, no frame; the fastest to decode, and the weakest."""

import lz4.block
import numpy as np

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.errors import CorruptBlock


class Lz4Codec(Codec):
    """Compress a block; finds repetitions only, so let `planes` go first."""

    id = 1
    name = "lz4"

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        block = lz4.block.compress(chunk.data, store_size=False)
        if len(block) > min(len(chunk), len(out)):
            return None
        out[: len(block)] = np.frombuffer(block, np.uint8)
        return len(block)

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        try:
            chunk = lz4.block.decompress(buf.data, uncompressed_size=len(out))
        except (lz4.block.LZ4BlockError, ValueError) as exc:
            raise CorruptBlock(f"lz4: {exc}") from exc
        if len(chunk) != len(out):
            raise CorruptBlock(f"lz4 block of {len(chunk)} bytes for a chunk of {len(out)}")
        out[:] = np.frombuffer(chunk, np.uint8)
