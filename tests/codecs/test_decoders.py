"""Decoders are made when a record first needs them, and two threads may need one at once."""

import struct

import numpy as np
import pytest

from kvtier import registry
from kvtier.codec import Codec
from kvtier.codecs.raw import RawCodec
from kvtier.decoders import Decoders
from kvtier.errors import CorruptBlock


def test_the_configured_codec_is_the_one_that_decodes() -> None:
    raw = RawCodec()
    assert Decoders(raw).of(0) is raw


def test_an_id_that_nobody_knows_is_a_corrupt_record() -> None:
    with pytest.raises(CorruptBlock, match="unknown codec 999"):
        Decoders().of(999)


def test_a_codec_that_is_made_meanwhile_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = Decoders()
    made: list[Codec] = []

    def build(kind: str, plugin: registry.Plugin) -> Codec:
        codec = RawCodec()
        made.append(codec)
        if len(made) == 1:  # another thread, in the middle of it
            decoders.of(1)
        return codec

    monkeypatch.setattr(registry, "build", build)
    assert decoders.of(1) is made[1]
    assert decoders.of(1) is made[1]
    assert len(made) == 2


def nested(depth: int, nbytes: int) -> bytes:
    """A payload that says it is a choice of a pipeline of a choice of a pipeline, and so on."""
    payload = b""
    for _ in range(depth):
        pipeline = struct.pack("<BHI", 1, 6, nbytes) + payload
        payload = struct.pack("<H", 3) + pipeline
    return payload


@pytest.mark.parametrize("depth", [2, 5000])
def test_codecs_that_are_nested_without_end_are_a_corrupt_record(depth: int) -> None:
    payload = np.frombuffer(nested(depth, 4096), np.uint8)
    with pytest.raises(CorruptBlock, match="a budget within a pipeline"):
        Decoders().of(6).decode(payload, np.empty(4096, np.uint8))
