"""Zstandard with a dictionary that is trained on the first chunks of a namespace.

It helps where a chunk is too small to be its own dictionary. Dictionaries are numbered, at most 16, and kept for
ever beside the records; a frame says the number of its own, 32768 for none but ours (zstd's private range).
"""

import logging
import threading
from contextlib import suppress
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import zstandard
from msgspec import Meta
from zstandard import ZstdCompressionDict as Dictionary

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec, Shelf
from kvtier.codecs.zstd import decode_frame
from kvtier.errors import CorruptBlock, TierError

logger = logging.getLogger(__name__)

_FIRST_ID = 1 << 15
_VERSIONS = 16  # of a namespace: they are outside the tier's capacity, and stay as long as it
_LOADED = 8  # dictionaries, and contexts of a thread; others are read again from the shelf
_Loaded = TypeVar("_Loaded")
_Pieces = list[bytes | bytearray | memoryview]  # as zstandard wants it
_PIECE = 16 << 10  # of each chunk, from its start and from its middle


class ZstdDictConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Its size in bytes, the chunks to learn from, and after how many more to learn anew, up to 16 times; 0: never."""

    level: Annotated[int, Meta(ge=-100, le=22)] = 1
    dictionary: Annotated[int, Meta(ge=1 << 10, le=1 << 20)] = 64 << 10
    train: Annotated[int, Meta(ge=8, le=1000)] = 100
    every: Annotated[int, Meta(ge=0)] = 0


class ZstdDictCodec(Codec):
    """Compress without a dictionary until there is one; the thread that has enough samples trains it."""

    id = 7
    name = "zstd_dict"
    Config = ZstdDictConfig

    def __init__(self, config: ZstdDictConfig = ZstdDictConfig()) -> None:  # noqa: B008 - frozen
        self._config = config
        self._trained = _Trained(None, config)

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        trained = self._trained_on(facts.shelf)
        trained.learn(chunk)
        frame = trained.contexts.compressor(trained.newest).compress(chunk.data)
        if len(frame) > min(len(chunk), len(out)):
            return None
        out[: len(frame)] = np.frombuffer(frame, np.uint8)
        return len(frame)

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        trained = self._trained_on(facts.shelf)
        try:
            frame = zstandard.get_frame_parameters(buf.data)
            decompressor = trained.contexts.decompressor(trained.by_id(frame.dict_id))
            decode_frame(decompressor, buf, out)
        except zstandard.ZstdError as exc:
            raise CorruptBlock(f"zstd: {exc}") from exc

    def _trained_on(self, shelf: Shelf | None) -> "_Trained":
        """Return what was trained on a shelf; what belongs to the shelf of before is forgotten."""
        trained = self._trained
        if trained.shelf is not shelf:
            self._trained = trained = _Trained(shelf, self._config)
        return trained


class _Trained:
    """The dictionaries of one namespace. Any thread; the lock is not held while one is trained or read."""

    def __init__(self, shelf: Shelf | None, config: ZstdDictConfig) -> None:
        self.contexts = _Contexts(config.level)
        self.newest: Dictionary | None = None
        self.shelf = shelf
        self._config = config
        self._lock = threading.Lock()
        self._dictionaries: dict[int, Dictionary] = {}
        self._pieces: _Pieces = []
        self._version = 0
        self._seen = 0
        with suppress(CorruptBlock):
            while self._version < _VERSIONS and (found := self._read(self._version + 1)):
                self._version += 1
                self.newest = found

    def by_id(self, dict_id: int) -> Dictionary | None:
        """Return a frame's dictionary, None where it has none; a dictionary that is not there makes a CorruptBlock."""
        if not dict_id:
            return None
        with self._lock:
            found = self._dictionaries.pop(dict_id, None)
            if found is not None:
                self._dictionaries[dict_id] = found  # the one used last is the last to go
        found = found or self._read(dict_id - _FIRST_ID)
        if found is None:
            raise CorruptBlock(f"zstd dictionary {dict_id} is not there")
        return found

    def learn(self, chunk: Bytes) -> None:
        """Take samples while a dictionary is wanted, and train it when there are enough."""
        with self._lock:
            pieces, version = self._sampled(chunk), self._version
        if pieces:
            self._train(pieces, version)

    def _sampled(self, chunk: Bytes) -> _Pieces:
        if self.shelf is None or self._version >= _VERSIONS:
            return []
        self._seen += 1
        start = 0 if self._version == 0 else self._config.every
        if (self.newest is not None and not start) or self._seen <= start:
            return []
        starts = (0, len(chunk) // 2) if len(chunk) > 2 * _PIECE else (0,)
        self._pieces += [bytes(chunk[at : at + _PIECE].data) for at in starts]
        if self._seen < start + self._config.train:
            return []
        pieces, self._pieces, self._seen = self._pieces, [], 0
        self._version += 1
        return pieces

    def _train(self, pieces: _Pieces, version: int) -> None:
        size = min(self._config.dictionary, sum(map(len, pieces)) // 8)
        try:
            trained = zstandard.train_dictionary(size, pieces, dict_id=_FIRST_ID + version)
        except zstandard.ZstdError as exc:
            logger.warning("no dictionary can be made of these chunks: %s", exc)
            return
        assert self.shelf
        if self.shelf.write(_name(version), trained.as_bytes()):
            self.newest = self._loaded(version, trained)
        else:
            with suppress(CorruptBlock, TierError):  # another codec on the same shelf was first
                self.newest = self._read(version) or self.newest

    def _read(self, version: int) -> Dictionary | None:
        content = self.shelf.read(_name(version)) if self.shelf and version > 0 else None
        if content is None:
            return None
        return self._loaded(version, Dictionary(content))

    def _loaded(self, version: int, dictionary: Dictionary) -> Dictionary:
        with self._lock:
            self._dictionaries[_FIRST_ID + version] = dictionary
            _cut(self._dictionaries)
        return dictionary


class _Contexts(threading.local):
    """Contexts of one thread: for the newest dictionary, and those that records were read with lately."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        self._decompressors: dict[int, zstandard.ZstdDecompressor] = {}

    def compressor(self, dictionary: Dictionary | None) -> zstandard.ZstdCompressor:
        """Return the thread's compressor for `dictionary`."""
        key = dictionary.dict_id() if dictionary else 0
        if key not in self._compressors:
            # A checksum: what another dictionary would make of a frame is found out, whatever happens.
            made = zstandard.ZstdCompressor(self._level, dict_data=dictionary, write_checksum=True)
            self._compressors = {key: made}
        return self._compressors[key]

    def decompressor(self, dictionary: Dictionary | None) -> zstandard.ZstdDecompressor:
        """Return the thread's decompressor for `dictionary`."""
        key = dictionary.dict_id() if dictionary else 0
        if key not in self._decompressors:
            self._decompressors[key] = zstandard.ZstdDecompressor(dict_data=dictionary)
            _cut(self._decompressors)
        return self._decompressors[key]


def _cut(loaded: dict[int, _Loaded]) -> None:
    """Let the oldest go where there are too many."""
    while len(loaded) > _LOADED:
        del loaded[next(iter(loaded))]


def _name(version: int) -> str:
    return f"zstd {version}"
