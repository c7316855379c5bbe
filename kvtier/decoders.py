"""Which codec decodes a record: whatever its tier is configured to write, by the id in the record's header."""

from kvtier import registry
from kvtier.codec import Codec
from kvtier.config import Plugin
from kvtier.errors import ConfigError, CorruptBlock

CODEC_NAMES = {
    0: "raw",
    1: "lz4",
    2: "zstd",
    3: "pipeline",
    4: "planes",
    5: "layout",
    6: "budget",
    7: "zstd_dict",
    16: "quantise",
}
"""Ids that any kvtier can decode, whatever its tier is configured to write; see kvtier.codecs."""


class Decoders:
    """Find the codec that a record was written with. Any thread: what two make at once, one of them is kept."""

    def __init__(self, *configured: Codec) -> None:
        self._by_id = {codec.id: codec for codec in configured}

    def of(self, codec_id: int) -> Codec:
        """Return the codec with this id; one that nothing here can decode is a CorruptBlock."""
        if codec_id not in self._by_id:
            try:
                codec = registry.build("codec", Plugin(kind=CODEC_NAMES[codec_id]))
            except (KeyError, ConfigError) as exc:
                raise CorruptBlock(f"unknown codec {codec_id}") from exc
            self._by_id.setdefault(codec_id, codec)
        return self._by_id[codec_id]
