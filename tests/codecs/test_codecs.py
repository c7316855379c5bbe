"""Both codecs keep the contract; their golden payloads decode for ever."""

from pathlib import Path

import numpy as np
import pytest

from kvtier.codec import Codec
from kvtier.codecs.raw import RawCodec
from kvtier.codecs.zstd import ZstdCodec, ZstdConfig
from kvtier.errors import CorruptBlock
from kvtier.io_process.plugins import CODEC_NAMES, Decoders, PluginSetup, make_codec
from kvtier.testing.codecs import CodecContract, encoded, sample

GOLDEN = Path(__file__).parent / "golden"


class TestRawCodec(CodecContract):
    def make(self) -> Codec:
        return RawCodec()


class TestZstdCodec(CodecContract):
    def make(self) -> Codec:
        return ZstdCodec()

    def test_golden(self) -> None:
        out = np.empty(10_000, np.uint8)
        self.make().decode(np.fromfile(GOLDEN / "zstd", np.uint8), out)
        assert np.array_equal(out, np.arange(10_000) // 100 % 256)

    def test_levels(self) -> None:
        chunk = np.arange(100_000, dtype=np.uint32).view(np.uint8)
        sizes = [
            len(payload)
            for level in (1, 19)
            if (payload := encoded(ZstdCodec(ZstdConfig(level=level)), chunk)) is not None
        ]
        assert sizes[1] < sizes[0] < len(chunk)

    def test_a_frame_that_claims_the_world_is_refused_before_it_allocates(self) -> None:
        payload = encoded(self.make(), sample("zeros", 1 << 26))
        assert payload is not None
        with pytest.raises(CorruptBlock, match="67108864 bytes for a chunk of 100"):
            self.make().decode(payload, np.empty(100, np.uint8))


def test_ids_mean_these_codecs() -> None:
    for codec_id, name in CODEC_NAMES.items():
        assert make_codec(PluginSetup(name)).id == codec_id


def test_any_known_codec_decodes_and_no_other() -> None:
    decoders = Decoders(RawCodec())
    assert isinstance(decoders.of(2), ZstdCodec)
    with pytest.raises(CorruptBlock, match="unknown codec 77"):
        decoders.of(77)
