"""The codec that does nothing: a chunk is stored as it is."""

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.errors import CorruptBlock


class RawCodec(Codec):
    """Store chunks as they are; every other codec's fallback."""

    id = 0
    name = "raw"

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        return None

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        if len(buf) != len(out):
            raise CorruptBlock(f"raw payload of {len(buf)} bytes for a chunk of {len(out)}")
        out[:] = buf
