"""The contract of every codec, as a test class to derive from."""

import tracemalloc
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from kvtier.codec import MARGIN, NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.errors import CorruptBlock

_GUARD = 64


class CodecContract(ABC):
    """Derive as `class TestMyCodec(CodecContract)` and say how to make one."""

    @abstractmethod
    def make(self) -> Codec:
        """Make the codec."""

    @pytest.mark.parametrize("nbytes", [1, 4095, 4096, 100_000])
    @pytest.mark.parametrize("kind", ["zeros", "random", "floats"])
    def test_decodes_what_it_encoded(self, kind: str, nbytes: int) -> None:
        codec, chunk = self.make(), sample(kind, nbytes)
        payload = encoded(codec, chunk)
        out = np.empty_like(chunk)
        if payload is None:
            assert encoded(codec, chunk) is None, "says the same twice"
            return
        assert len(payload) <= nbytes + MARGIN
        codec.decode(payload, out)
        assert np.array_equal(out, chunk)

    def test_never_changes_the_chunk(self) -> None:
        chunk = sample("floats", 50_000)
        before = chunk.copy()
        encoded(self.make(), chunk)
        assert np.array_equal(chunk, before)

    def test_refuses_another_length(self) -> None:
        codec, chunk = self.make(), sample("zeros", 10_000)
        payload = encoded(codec, chunk)
        for nbytes in (0, 9_999, 10_001):
            with pytest.raises(CorruptBlock):
                codec.decode(chunk if payload is None else payload, np.empty(nbytes, np.uint8))

    def test_hostile_bytes_stay_inside(self) -> None:
        codec, chunk = self.make(), sample("floats", 5_000)
        payload = encoded(codec, chunk)
        rng = np.random.default_rng(0)
        for _ in range(2_000):
            decode_guarded(codec, hostile(rng, chunk if payload is None else payload), len(chunk))

    def test_hostile_bytes_take_no_more_memory_than_a_chunk_does(self) -> None:
        codec, chunk = self.make(), sample("floats", 100_000)
        payload = encoded(codec, chunk)
        rng = np.random.default_rng(0)
        for _ in range(50):
            bad = hostile(rng, chunk if payload is None else payload)
            tracemalloc.start()
            try:
                decode_guarded(codec, bad, len(chunk))
                assert tracemalloc.get_traced_memory()[1] < 8 * len(chunk) + (1 << 16)
            finally:
                tracemalloc.stop()

    def test_threads_do_not_meet(self) -> None:
        codec = self.make()

        def work(seed: int) -> bool:
            chunk = sample("floats", 30_000, seed)
            for _ in range(20):
                payload = encoded(codec, chunk)
                out = chunk.copy()
                if payload is not None:
                    out[:] = 0
                    codec.decode(payload, out)
                if not np.array_equal(out, chunk):
                    return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))


def encoded(codec: Codec, chunk: Bytes, facts: ChunkFacts = NO_FACTS) -> Bytes | None:
    """Encode into fresh memory; None means that the chunk stays raw."""
    out = np.empty(len(chunk) + MARGIN, np.uint8)
    n = codec.encode(chunk, out, facts)
    return None if n is None else out[:n]


def hostile(rng: np.random.Generator, payload: Bytes) -> Bytes:
    """Make something else of a payload: cut, lengthened, flipped, with a length of its own, or noise."""
    way, n = rng.integers(0, 6), len(payload)
    if way == 0:
        return payload[: rng.integers(0, n + 1)].copy()
    if way == 1:
        return np.append(payload, rng.integers(0, 256, rng.integers(1, 100), dtype=np.uint8))
    if way == 2:
        return rng.integers(0, 256, rng.integers(0, 300), dtype=np.uint8)
    bad = payload.copy()
    if way == 3:  # where headers are
        bad[rng.integers(0, min(n, 64), 2)] = rng.integers(0, 256, 2)
    elif way == 4:
        bad[rng.integers(0, n, 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
    else:
        width = min(n, 1 << int(rng.integers(0, 4)))
        at = int(rng.integers(0, min(n - width + 1, 64)))
        bad[at : at + width] = rng.choice(np.array([0, 0x7F, 0x80, 0xFF], np.uint8))
    return bad


def decode_guarded(codec: Codec, payload: Bytes, nbytes: int, facts: ChunkFacts = NO_FACTS) -> bool:
    """Decode between guards and return whether it went through; a wrong chunk is the checksum's to find."""
    memory = np.full(nbytes + 2 * _GUARD, 0xA5, np.uint8)
    through = False
    with suppress(CorruptBlock):
        codec.decode(payload, memory[_GUARD:-_GUARD], facts)
        through = True
    assert (memory[:_GUARD] == 0xA5).all()
    assert (memory[-_GUARD:] == 0xA5).all()
    return through


def sample(kind: str, nbytes: int, seed: int = 0) -> Bytes:
    """Make a chunk: zeros, incompressible bytes, or half-precision normal values."""
    rng = np.random.default_rng(seed)
    if kind == "zeros":
        return np.zeros(nbytes, np.uint8)
    if kind == "random":
        return rng.integers(0, 256, nbytes, dtype=np.uint8)
    values = rng.standard_normal(nbytes // 2 + 1).astype(np.float16)
    return np.frombuffer(values.tobytes(), np.uint8)[:nbytes].copy()
