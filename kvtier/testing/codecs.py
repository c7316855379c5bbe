"""The contract of every codec, as a test class to derive from."""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from kvtier.codec import Bytes, Codec
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
            assert codec.encode(chunk, np.empty_like(chunk)) is None, "says the same twice"
            return
        assert len(payload) <= nbytes
        codec.decode(payload, out)
        assert np.array_equal(out, chunk)

    def test_never_changes_the_chunk(self) -> None:
        chunk = sample("floats", 50_000)
        before = chunk.copy()
        self.make().encode(chunk, np.empty_like(chunk))
        assert np.array_equal(chunk, before)

    def test_refuses_another_length(self) -> None:
        codec, chunk = self.make(), sample("zeros", 10_000)
        payload = encoded(codec, chunk)
        for nbytes in (0, 9_999, 10_001):
            with pytest.raises(CorruptBlock):
                codec.decode(chunk if payload is None else payload, np.empty(nbytes, np.uint8))

    def test_hostile_bytes_stay_inside(self) -> None:
        codec = self.make()
        payload = encoded(codec, sample("floats", 5_000))
        base = sample("floats", 5_000) if payload is None else payload
        for seed in range(200):
            rng = np.random.default_rng(seed)
            hostile = base[: rng.integers(0, len(base) + 1)].copy()
            hostile[rng.integers(0, max(1, len(hostile)), 3) % max(1, len(hostile))] ^= 0x5A
            self._decode_guarded(codec, hostile)
            self._decode_guarded(codec, rng.integers(0, 256, 300, dtype=np.uint8))

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

    def _decode_guarded(self, codec: Codec, payload: Bytes) -> None:
        memory = np.full(5_000 + 2 * _GUARD, 0xA5, np.uint8)
        with suppress(CorruptBlock):  # a wrong chunk is the record checksum's to find
            codec.decode(payload, memory[_GUARD:-_GUARD])
        assert (memory[:_GUARD] == 0xA5).all()
        assert (memory[-_GUARD:] == 0xA5).all()


def encoded(codec: Codec, chunk: Bytes) -> Bytes | None:
    """Encode into fresh memory; None means that the chunk stays raw."""
    out = np.empty_like(chunk)
    n = codec.encode(chunk, out)
    return None if n is None else out[:n]


def sample(kind: str, nbytes: int, seed: int = 0) -> Bytes:
    """Make a chunk: zeros, incompressible bytes, or half-precision normal values."""
    rng = np.random.default_rng(seed)
    if kind == "zeros":
        return np.zeros(nbytes, np.uint8)
    if kind == "random":
        return rng.integers(0, 256, nbytes, dtype=np.uint8)
    values = rng.standard_normal(nbytes // 2 + 1).astype(np.float16)
    return np.frombuffer(values.tobytes(), np.uint8)[:nbytes].copy()
