"""Lossless on real keys and values: what it saves, and that every bit of every element comes back."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kvtier.cli.codec_rows import ChunkSample, cut, entropy_bound, measure
from kvtier.codec import Bytes, ChunkFacts
from kvtier.errors import CorruptBlock
from kvtier.testing.codecs import decode_guarded, encoded, hostile
from tests.codecs.named import named
from tests.packings import PACKINGS, layout

KV = Path(__file__).parent / "kv-bf16.npy"
"""Keys and values of 128 tokens of Python source, as vLLM wrote them for a trained Llama of 14M parameters."""

STAGES: dict[str, tuple[object, ...]] = {
    "lossless": ("lossless",),
    "bytes": ({"kind": "planes", "split": "bytes"}, "lz4"),
    "layout": ("layout", "planes", "zstd"),
    "channel": ({"kind": "layout", "order": "channel"}, "planes", "lz4", "zstd"),
    "zstd": ("zstd",),
}
DTYPES = ["bf16", "fp16", "fp32", "fp8", ""]


@pytest.fixture(scope="module")
def real() -> ChunkSample:
    return cut(np.load(KV), "bf16", 128)


def back_from(codec: tuple[object, ...], chunk: Bytes, facts: ChunkFacts) -> Bytes:
    payload = encoded(named(*codec), chunk, facts)
    if payload is None:
        return chunk
    out = np.full_like(chunk, 0xA5)
    named(*codec).decode(payload, out, facts)
    return out


def test_golden_ratios(real: ChunkSample) -> None:
    ratios = {name: measure(name, named(*codec), real).ratio for name, codec in STAGES.items()}
    assert ratios["lossless"] >= 1.42
    assert ratios["lossless"] == pytest.approx(1.528, abs=0.02)
    assert ratios["zstd"] == pytest.approx(1.32, abs=0.03)


def test_lossless_is_within_3_percent_of_the_entropy_of_its_planes(real: ChunkSample) -> None:
    assert measure("lossless", named("lossless"), real).ratio >= 0.97 * entropy_bound(real)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stages", STAGES)
def test_every_16_bit_pattern_comes_back(stages: str, dtype: str) -> None:
    patterns = np.repeat(np.arange(1 << 16, dtype=np.uint16), 2)  # NaN, infinities, subnormals, -0
    chunk = patterns.view(np.uint8)
    assert np.array_equal(back_from(STAGES[stages], chunk, ChunkFacts(dtype)), chunk)


@settings(max_examples=150, deadline=None)
@given(
    chunk=arrays.arrays(np.uint8, st.integers(1, 3000), elements=st.integers(0, 255)),
    dtype=st.sampled_from(DTYPES),
    stages=st.sampled_from(sorted(STAGES)),
)
def test_any_bytes_come_back(chunk: Bytes, dtype: str, stages: str) -> None:
    assert np.array_equal(back_from(STAGES[stages], chunk, ChunkFacts(dtype)), chunk)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("order", ["layer", "token", "channel"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_any_order_of_any_packing_comes_back(packing: str, order: str, blocks: int) -> None:
    found = layout(packing, blocks=blocks)  # type: ignore[arg-type] # one of PACKINGS
    chunk = np.random.default_rng(0).integers(0, 8, found.nbytes, dtype=np.uint8)
    stages = ({"kind": "layout", "order": order}, "zstd")
    assert np.array_equal(back_from(stages, chunk, ChunkFacts("bf16", found)), chunk)


def test_an_order_without_its_layout_is_corrupt() -> None:
    found = layout("vec")
    chunk = np.zeros(found.nbytes, np.uint8)
    payload = encoded(named("layout", "zstd"), chunk, ChunkFacts("bf16", found))
    assert payload is not None
    with pytest.raises(CorruptBlock, match="layout is not known"):
        named("lossless").decode(payload, chunk)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), stages=st.sampled_from(sorted(STAGES)))
def test_hostile_payloads_stay_inside(real: ChunkSample, seed: int, stages: str) -> None:
    rng = np.random.default_rng(seed)
    chunk = real.chunks[0][:20_000]
    payload = encoded(named(*STAGES[stages]), chunk)
    codec = named("lossless")
    assert payload is not None
    for _ in range(20):
        decode_guarded(codec, hostile(rng, payload), len(chunk))


@pytest.mark.parametrize("name", ["lossless", "zstd", "lz4"])
def test_the_gil_is_free_while_a_chunk_is_coded(real: ChunkSample, name: str) -> None:
    codec, chunk = named(name), np.tile(real.chunks[0], 32)
    payload, out = encoded(codec, chunk), np.empty_like(chunk)
    turns, done = 0, threading.Event()

    def tick() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0)  # gives the GIL back at once: a turn is taken when it is free

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(5):
            encoded(codec, chunk)
            if payload is not None:
                codec.decode(payload, out)
    finally:
        done.set()
        thread.join()
    assert turns > 200  # between the calls alone there would be fewer
