"""Decoders are made while others are given their shelf, and each ends with the shelf of now."""

import pytest

from kvtier import registry
from kvtier.codec import Codec, Shelf
from kvtier.codecs.raw import RawCodec
from kvtier.decoders import Decoders


class EmptyShelf(Shelf):
    def read(self, name: str) -> bytes | None:
        return None

    def write(self, name: str, content: bytes) -> bool:
        return False


class Meddling(RawCodec):
    """Does what another thread might, in the middle of being given a shelf."""

    def __init__(self) -> None:
        self.decoders: Decoders | None = None
        self.another: Shelf | None = None
        self.shelf: Shelf | None = None

    def keep(self, shelf: Shelf) -> None:
        if self.decoders is not None and self.another is None:
            self.decoders.of(1)
        elif self.decoders is not None and self.another is not shelf:
            assert self.another
            self.decoders.keep(self.another)
        self.shelf = shelf


def test_a_codec_may_be_made_while_the_shelf_changes() -> None:
    codec = Meddling()
    codec.decoders = Decoders(codec)
    codec.decoders.keep(EmptyShelf())
    assert codec.shelf is not None


def test_a_codec_that_is_made_meanwhile_gets_the_new_shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Meddling()
    decoders = made.decoders = Decoders(RawCodec())
    decoders.keep(EmptyShelf())
    made.another = EmptyShelf()

    def build(kind: str, plugin: registry.Named) -> Codec:
        return made

    monkeypatch.setattr(registry, "build", build)
    assert decoders.of(1) is made
    assert made.shelf is made.another
