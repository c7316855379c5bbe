"""Lossless codecs keep the contract; their golden payloads decode for ever."""

from pathlib import Path

import numpy as np
import pytest

from kvtier import registry
from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.codecs.layout import LayoutCodec, LayoutConfig
from kvtier.codecs.lz4 import Lz4Codec
from kvtier.codecs.planes import PlanesCodec, PlanesConfig
from kvtier.codecs.raw import RawCodec
from kvtier.codecs.zstd import ZstdCodec, ZstdConfig
from kvtier.config import Plugin
from kvtier.decoders import CODEC_NAMES, Decoders
from kvtier.errors import CorruptBlock
from kvtier.testing.codecs import CodecContract, encoded, sample
from tests.codecs.named import named
from tests.packings import layout

GOLDEN = Path(__file__).parent / "golden"
CHUNK: Bytes = (np.arange(12_288) // 100 % 256).astype(np.uint8)
LAYOUT = ChunkFacts("bf16", layout("vec", layers=3, tokens=16, heads=2, dim=32))
FP32 = ChunkFacts("fp32")


class TestRawCodec(CodecContract):
    def make(self) -> Codec:
        return RawCodec()


class TestLz4Codec(CodecContract):
    def make(self) -> Codec:
        return Lz4Codec()


class TestPlanesCodec(CodecContract):
    def make(self) -> Codec:
        return PlanesCodec()


class TestBytePlanesCodec(CodecContract):
    def make(self) -> Codec:
        return PlanesCodec(PlanesConfig(split="bytes"))


class TestLayoutCodec(CodecContract):
    def make(self) -> Codec:
        return LayoutCodec()


class TestLosslessCodec(CodecContract):
    def make(self) -> Codec:
        return named("lossless")


class TestZstdCodec(CodecContract):
    def make(self) -> Codec:
        return ZstdCodec()

    def test_levels(self) -> None:
        chunk = np.arange(100_000, dtype=np.uint32).view(np.uint8)
        sizes = [
            len(payload)
            for level in (1, 19)
            if (payload := encoded(ZstdCodec(ZstdConfig(level=level)), chunk)) is not None
        ]
        assert sizes[1] < sizes[0] < len(chunk)

    def test_a_frame_and_something_after_it_is_no_payload(self) -> None:
        codec, chunk = self.make(), sample("zeros", 200_000)
        payload = encoded(codec, chunk)
        assert payload is not None
        for bad in (np.append(payload, payload), np.append(payload, np.uint8(0)), payload[:-1]):
            with pytest.raises(CorruptBlock):
                codec.decode(bad, np.empty_like(chunk))
            codec.decode(payload, chunk)  # nothing of the failure is left

    def test_a_frame_that_claims_the_world_is_refused_before_it_allocates(self) -> None:
        payload = encoded(self.make(), sample("zeros", 1 << 26))
        assert payload is not None
        with pytest.raises(CorruptBlock, match="67108864 bytes for a chunk of 100"):
            self.make().decode(payload, np.empty(100, np.uint8))


WRITTEN: dict[str, tuple[Codec, ChunkFacts]] = {
    "lz4": (Lz4Codec(), NO_FACTS),
    "planes-exponent": (PlanesCodec(), NO_FACTS),
    "planes-bytes": (PlanesCodec(PlanesConfig(split="bytes")), NO_FACTS),
    "planes-fp32": (PlanesCodec(), FP32),
    "layout-layer": (LayoutCodec(), LAYOUT),
    "layout-token": (LayoutCodec(LayoutConfig(order="token")), LAYOUT),
    "layout-channel": (LayoutCodec(LayoutConfig(order="channel")), LAYOUT),
    "pipeline-lossless": (named("lossless"), NO_FACTS),
}
"""How the golden payloads were made; decoded by whoever the id in a record's header means."""


@pytest.mark.parametrize("name", WRITTEN)
def test_golden_payloads_decode_for_ever(name: str) -> None:
    codec, facts = WRITTEN[name]
    out = np.empty_like(CHUNK)
    Decoders().of(codec.id).decode(np.fromfile(GOLDEN / name, np.uint8), out, facts)
    assert np.array_equal(out, CHUNK)


def test_the_first_golden_payload_decodes_for_ever() -> None:
    out = np.empty(10_000, np.uint8)
    Decoders().of(2).decode(np.fromfile(GOLDEN / "zstd", np.uint8), out)
    assert np.array_equal(out, np.arange(10_000) // 100 % 256)


def test_ids_mean_these_codecs() -> None:
    for codec_id, name in CODEC_NAMES.items():
        assert registry.build("codec", Plugin(kind=name)).id == codec_id


def test_any_known_codec_decodes_and_no_other() -> None:
    decoders = Decoders(RawCodec())
    assert isinstance(decoders.of(2), ZstdCodec)
    with pytest.raises(CorruptBlock, match="unknown codec 77"):
        decoders.of(77)
