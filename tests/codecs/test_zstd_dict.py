"""Dictionaries: trained once per namespace, kept by their number, and old records stay readable."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec, Shelf
from kvtier.codecs.pipeline import PipelineCodec, PipelineConfig
from kvtier.codecs.zstd_dict import ZstdDictCodec, ZstdDictConfig
from kvtier.config import Plugin
from kvtier.errors import CorruptBlock
from kvtier.io_process.shelf import TierShelf
from kvtier.testing.codecs import CodecContract, encoded
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier

CONFIG = ZstdDictConfig(dictionary=8192, train=20)


class DictShelf(Shelf):
    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self.contents.get(name)

    def write(self, name: str, content: bytes) -> bool:
        return self.contents.setdefault(name, content) is content


def small(seed: int, kind: int = 0) -> Bytes:
    """Make a chunk of 4 KiB, alike in its parts to every other of its kind and never within itself."""
    parts = np.random.default_rng(kind).integers(0, 256, (64, 256), dtype=np.uint8)
    chosen = np.random.default_rng(seed).choice(64, 16, replace=False)
    return np.ascontiguousarray(parts[chosen]).reshape(-1)


class OnShelf(ZstdDictCodec):
    """Code every chunk as one of the namespace that has this shelf."""

    def __init__(self, shelf: Shelf, config: ZstdDictConfig) -> None:
        super().__init__(config)
        self.shelf = shelf

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        return super().encode(chunk, out, facts._replace(shelf=self.shelf))

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        super().decode(buf, out, facts._replace(shelf=self.shelf))


def codec_on(shelf: Shelf, config: ZstdDictConfig = CONFIG) -> OnShelf:
    return OnShelf(shelf, config)


def size(codec: Codec, seed: int, kind: int = 0) -> int:
    payload = encoded(codec, small(seed, kind))
    return 4096 if payload is None else len(payload)


def train(codec: Codec, kind: int = 0, chunks: int = 20) -> None:
    for seed in range(chunks):
        encoded(codec, small(1000 + seed, kind))


class TestZstdDictCodec(CodecContract):
    def make(self) -> Codec:
        codec = codec_on(DictShelf())
        train(codec)
        return codec


def test_a_dictionary_pays_for_small_chunks() -> None:
    codec = codec_on(DictShelf())
    assert size(codec, 1) == 4096
    train(codec)
    assert size(codec, 1) < 3000


def test_a_later_engine_reads_and_goes_on_with_it() -> None:
    shelf = DictShelf()
    train(codec_on(shelf))
    payload = encoded(codec_on(shelf), small(1))
    assert payload is not None
    assert [*shelf.contents] == ["zstd 1"]
    out = np.empty(4096, np.uint8)
    codec_on(shelf).decode(payload, out)
    assert np.array_equal(out, small(1))


def test_what_an_old_version_wrote_stays_readable() -> None:
    shelf = DictShelf()
    codec = codec_on(shelf, ZstdDictConfig(dictionary=8192, train=20, every=40))
    train(codec)
    old = encoded(codec, small(1))
    train(codec, kind=1, chunks=60)
    assert [*shelf.contents] == ["zstd 1", "zstd 2"]
    assert size(codec, 1, kind=1) < 3000
    assert old is not None
    for each in (codec, codec_on(shelf)):
        out = np.empty(4096, np.uint8)
        each.decode(old, out)
        assert np.array_equal(out, small(1))


def test_their_number_is_bounded_and_few_are_in_memory() -> None:
    shelf = DictShelf()
    codec = codec_on(shelf, ZstdDictConfig(dictionary=1024, train=8, every=1))
    written = []
    for kind in range(40):
        train(codec, kind, chunks=10)
        written.append((kind, encoded(codec, small(1, kind))))
    assert [*shelf.contents] == [f"zstd {n}" for n in range(1, 17)]
    for each in (codec, codec_on(shelf)):
        for kind, payload in written:
            out = np.empty(4096, np.uint8)
            if payload is not None:
                each.decode(payload, out)
                assert np.array_equal(out, small(1, kind))
        assert len(each._trained._dictionaries) <= 8
        assert len(each._trained.contexts._decompressors) <= 8
    assert sum(payload is not None for _, payload in written) >= 10


def test_another_dictionary_of_the_same_number_is_no_answer() -> None:
    shelves = DictShelf(), DictShelf()
    for kind, shelf in enumerate(shelves):
        train(codec_on(shelf), kind)
    payload = encoded(codec_on(shelves[0]), small(1))
    assert payload is not None
    with pytest.raises(CorruptBlock):
        codec_on(shelves[1]).decode(payload, np.empty(4096, np.uint8))
    with pytest.raises(CorruptBlock, match="dictionary 32769 is not there"):
        codec_on(DictShelf()).decode(payload, np.empty(4096, np.uint8))


def test_each_chunk_goes_by_the_shelf_of_its_namespace() -> None:
    first, second = DictShelf(), DictShelf()
    codec = codec_on(first)
    train(codec)
    payload = encoded(codec, small(1))
    assert payload is not None
    codec.shelf = second
    assert size(codec, 1) == 4096
    with pytest.raises(CorruptBlock, match="is not there"):
        codec.decode(payload, np.empty(4096, np.uint8))
    train(codec, kind=1)
    assert [*second.contents] == ["zstd 1"]
    codec.shelf, out = first, np.empty(4096, np.uint8)
    codec.decode(payload, out)
    assert np.array_equal(out, small(1))


def test_a_stage_gets_the_shelf_too() -> None:
    shelf = DictShelf()
    stages = (Plugin(kind="planes"), Plugin(kind="zstd_dict", options={"train": 8}))
    codec = PipelineCodec(PipelineConfig(stages=stages))
    for seed in range(8):
        encoded(codec, small(seed), ChunkFacts("fp8", shelf=shelf))
    assert [*shelf.contents] == ["zstd 1"]


def test_two_codecs_on_one_shelf_do_not_overwrite() -> None:
    shelf = DictShelf()
    codecs = [codec_on(shelf), codec_on(shelf)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, codecs, [0, 1]))
    assert [*shelf.contents] == ["zstd 1"]
    for writer in codecs:
        for reader in codecs:
            payload, out = encoded(writer, small(1)), np.empty(4096, np.uint8)
            if payload is not None:
                reader.decode(payload, out)
                assert np.array_equal(out, small(1))


def test_chunks_that_teach_nothing_are_no_error() -> None:
    shelf = DictShelf()
    codec = codec_on(shelf)
    for _ in range(30):
        encoded(codec, np.zeros(8, np.uint8))
    assert not shelf.contents


def test_the_shelf_of_a_tier_outlives_it(tmp_path: Path) -> None:
    def opened() -> tuple[FileTier, TierShelf]:
        tier = FileTier(FileConfig(path=str(tmp_path / "kv")), Site("nvme"))
        tier.open("0" * 32, "{}")
        return tier, TierShelf(tier, "0" * 32, 0)

    tier, shelf = opened()
    assert shelf.read("zstd 1") is None
    assert shelf.write("zstd 1", b"one")
    assert not shelf.write("zstd 1", b"two")
    assert [entry.key for entry in tier.scan()] == [b"\0kvtier shelf zstd 1"]
    tier.close()
    tier, shelf = opened()
    assert shelf.read("zstd 1") == b"one"
    file = next((tmp_path / "kv").rglob("*.kvt"))
    raw = bytearray(file.read_bytes())
    raw[4100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptBlock):
        shelf.read("zstd 1")
    assert shelf.write("zstd 1", b"anew")
    assert shelf.read("zstd 1") == b"anew"
    tier.close()
