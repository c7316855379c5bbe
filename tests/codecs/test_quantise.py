"""Quantised keys and values: how far they may be off, what stays exact, and what a bad payload does."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.cli.codec_rows import cut, measure
from kvtier.codec import MARGIN, Bytes, ChunkFacts, Codec
from kvtier.codecs.elements import E4M3, NARROW, WIDEN, encode_e4m3
from kvtier.codecs.pipeline import PipelineCodec
from kvtier.codecs.quantise import QuantiseCodec, QuantiseConfig, Width
from kvtier.errors import CorruptBlock
from kvtier.layout import ELEMENTS, Axis, ChunkLayout
from tests.codecs.named import named
from tests.packings import PACKINGS, Packing, gather, layout, scatter

GOLDEN = Path(__file__).parent / "golden"
KV = Path(__file__).parent / "kv-bf16.npy"
ORDER: tuple[Axis, ...] = ("layers", "tokens", "heads", "dim")
SINKS = 4
Floats = npt.NDArray[np.float32]


def chunk_of(found: ChunkLayout, seed: int = 0, scale: float = 1.0) -> Bytes:
    """Make keys with outlier channels and values with outlier tokens, the first token far out."""
    rng = np.random.default_rng(seed)
    chunk = np.zeros(found.nbytes, np.uint8)
    keys = rng.standard_normal(found.shape) * (1 + 9 * (np.arange(found.shape[3]) % 7 == 0)) + 1
    values = rng.standard_normal(found.shape)
    values[:, 5] *= 10
    keys[:, 0] *= 100
    for plane, array in ((found.keys, keys), (found.values, values)):
        narrow = NARROW[found.dtype]((array * scale).astype(np.float32))
        elements = np.ascontiguousarray(narrow).astype(ELEMENTS[found.dtype])
        scatter(found, elements, chunk, plane, ORDER)
    return chunk


def facts_of(found: ChunkLayout, end_token: int = 10_000) -> ChunkFacts:
    return ChunkFacts(found.dtype, found, "", end_token)


def through(codec: Codec, chunk: Bytes, facts: ChunkFacts) -> tuple[Bytes, Bytes]:
    """Encode and decode: the payload and what comes back."""
    out = np.empty(len(chunk) + MARGIN, np.uint8)
    n = codec.encode(chunk, out, facts)
    assert n is not None
    back = np.full_like(chunk, 0xA5)
    codec.decode(out[:n], back, facts)
    return out[:n], back


def floats(found: ChunkLayout, chunk: Bytes) -> tuple[Floats, Floats]:
    """Keys and values in logical order."""
    keys = WIDEN[found.dtype](gather(found, chunk, found.keys, ORDER))
    return keys, WIDEN[found.dtype](gather(found, chunk, found.values, ORDER))


def quantiser(k: Width, v: Width, *, hadamard: bool = False, **groups: int) -> QuantiseCodec:
    return QuantiseCodec(QuantiseConfig(k=k, v=v, hadamard=hadamard, **groups))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_no_value_is_off_by_more_than_half_a_step(packing: Packing, dtype: str, bits: int) -> None:
    found = layout(packing, dtype, blocks=2)  # type: ignore[arg-type]
    chunk = chunk_of(found)
    _, back = through(quantiser(bits, bits), chunk, facts_of(found))
    (keys, values), (keys_back, values_back) = floats(found, chunk), floats(found, back)
    spread = keys.max(1, keepdims=True) - keys.min(1, keepdims=True)
    size = np.abs(values).max(3, keepdims=True)
    rounding = 2.0**-7  # of bf16: the scale, the lowest value, and the result
    key_limit = spread / (2**bits - 1) / 2 + rounding * (spread + np.abs(keys))
    value_limit = size / (2 ** (bits - 1) - 1) / 2 + rounding * size
    assert (np.abs(keys - keys_back) <= key_limit).all()
    assert (np.abs(values - values_back) <= value_limit).all()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("hadamard", [False, True])
def test_a_payload_is_the_same_whatever_the_packing(packing: Packing, hadamard: bool) -> None:
    def payload(packing: Packing) -> Bytes:
        found = layout(packing, blocks=2)
        return through(quantiser(4, 4, hadamard=hadamard), chunk_of(found), facts_of(found))[0]

    assert np.array_equal(payload(packing), payload("plain"))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("hadamard", [False, True])
def test_the_first_tokens_of_a_sequence_stay_as_they_are(
    packing: Packing, dtype: str, hadamard: bool
) -> None:
    found = layout(packing, dtype)  # type: ignore[arg-type]
    tokens = found.shape[1]
    chunk = chunk_of(found)
    codec = quantiser(4, 4, hadamard=hadamard)
    _, first = through(codec, chunk, facts_of(found, tokens))
    _, second = through(codec, chunk, facts_of(found, 2 * tokens))
    for plane in (found.keys, found.values):
        exact = gather(found, chunk, plane, ORDER)[:, :SINKS]
        assert np.array_equal(gather(found, first, plane, ORDER)[:, :SINKS], exact)
        assert not np.array_equal(gather(found, second, plane, ORDER)[:, :SINKS], exact)
    keys, spoilt = floats(found, first)[0][:, SINKS:], floats(found, second)[0][:, SINKS:]
    exact_keys = floats(found, chunk)[0][:, SINKS:]
    assert np.abs(keys - exact_keys).mean() < 0.2 * np.abs(spoilt - exact_keys).mean()


def test_ratios() -> None:
    found = layout("vec", layers=2, tokens=128, dim=64)
    chunk = chunk_of(found)
    for codec, least in (
        (quantiser(8, 8), 1.91),
        (quantiser(8, 4), 2.5),
        (quantiser(4, 4), 3.65),
        (quantiser("fp8", "fp8"), 1.93),
    ):
        payload, _ = through(codec, chunk, facts_of(found))
        assert len(chunk) / len(payload) > least


@pytest.mark.parametrize(
    ("name", "ratio", "error"), [("int8", 1.95, 0.006), ("fp8", 2.2, 0.03), ("int4", 3.7, 0.1)]
)
def test_on_real_keys_and_values(name: str, ratio: float, error: float) -> None:
    row = measure(name, named(name), cut(np.load(KV), "bf16", 128))
    assert row.ratio > ratio
    assert row.rel_err < error


def test_a_constant_comes_back_as_it_was() -> None:
    found = layout("amx")
    chunk = np.zeros(found.nbytes, np.uint8)
    _, back = through(quantiser(4, 4), chunk, facts_of(found))
    assert np.array_equal(back, chunk)


def test_rotation_spreads_an_outlier() -> None:
    found = layout("vec", tokens=64, dim=64)
    chunk = chunk_of(found)
    chunk.view(np.uint16)[:] = 0
    spike = np.zeros(found.shape, np.float32)
    spike[:, :, :, 3] = np.random.default_rng(0).standard_normal(found.shape[:3]) * 100
    spike += np.random.default_rng(1).standard_normal(found.shape).astype(np.float32)
    scatter(found, NARROW["bf16"](spike).astype(np.uint16), chunk, found.values, ORDER)
    errors = []
    for hadamard in (False, True):
        _, back = through(quantiser(8, 4, hadamard=hadamard), chunk, facts_of(found))
        off = floats(found, back)[1] - floats(found, chunk)[1]
        errors.append(np.abs(off[..., 4:]).mean())
    assert (
        errors[1] < errors[0] * 2
    )  # the spike's step of 14 drowns its neighbours; rotated it is 2
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_raw(bad: float) -> None:
    found = layout("vec", "fp32")
    for at in (7000, found.nbytes // 4 - 7000):
        chunk = chunk_of(found)
        chunk.view(np.float32)[at] = bad
        out = np.empty(len(chunk) + MARGIN, np.uint8)
        widths: tuple[Width, ...] = (8, 4, "fp8")
        for width in widths:
            codec = quantiser(width, width)
            assert codec.encode(chunk, out, facts_of(found)) is None


@given(scale=st.floats(1e-38, 1e38), bits=st.sampled_from([3, 8, "fp8"]))
def test_any_scale_either_fits_or_stays_raw(scale: float, bits: Width) -> None:
    found = layout("plain", "fp32", layers=1, tokens=16, heads=1, dim=16)
    chunk = chunk_of(found, scale=min(scale, 1e35))
    out = np.empty(len(chunk) + MARGIN, np.uint8)
    if (n := quantiser(bits, bits).encode(chunk, out, facts_of(found))) is None:
        return
    back = np.empty_like(chunk)
    quantiser(8, 8).decode(out[:n], back, facts_of(found))
    (keys, values), (keys_back, values_back) = floats(found, chunk), floats(found, back)
    assert np.abs(keys - keys_back).max() <= np.abs(keys).max() * 0.3 + 3e-34
    assert np.abs(values - values_back).max() <= np.abs(values).max() * 0.3 + 3e-34


def test_e4m3_rounds_to_the_nearest() -> None:
    grid = np.sort(np.unique(E4M3[np.abs(E4M3) <= 448]))
    values = np.concatenate([np.linspace(-448, 448, 100_001), np.linspace(-0.1, 0.1, 10_001)])
    found = E4M3[encode_e4m3(values.astype(np.float32))]
    at = np.clip(np.searchsorted(grid, values), 1, len(grid) - 1)
    best = np.minimum(np.abs(grid[at] - values), np.abs(grid[at - 1] - values))
    assert (
        np.abs(found - values) <= best + np.abs(values) * 2.0**-10 + 2.0**-15
    ).all()  # float16 between


def test_without_a_layout_there_is_nothing_to_do() -> None:
    found = layout("vec")
    chunk = chunk_of(found)
    payload, _ = through(quantiser(8, 8), chunk, facts_of(found))
    out = np.empty(len(chunk) + MARGIN, np.uint8)
    assert quantiser(8, 8).encode(chunk, out, ChunkFacts("bf16")) is None
    with pytest.raises(CorruptBlock, match="not known"):
        quantiser(8, 8).decode(payload, chunk, ChunkFacts("bf16"))


@given(data=st.data())
def test_hostile_payloads_stay_inside(data: st.DataObject) -> None:
    found = layout("amx", layers=1, tokens=16, heads=1, dim=16)
    codec = quantiser(4, 4, hadamard=True)
    facts = facts_of(found, 16)
    payload = through(codec, chunk_of(found), facts)[0].copy()
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)))]
    memory = np.full(found.nbytes + 128, 0xA5, np.uint8)
    with suppress(CorruptBlock):
        codec.decode(payload, memory[64:-64], facts)
    assert (memory[:64] == 0xA5).all()
    assert (memory[-64:] == 0xA5).all()


def test_threads_do_not_meet() -> None:
    found = layout("amx", layers=2, tokens=32, dim=32)
    facts, codec = facts_of(found), quantiser(4, 8, hadamard=True)
    alone = [through(codec, chunk_of(found, seed), facts)[1] for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(
            lambda seed: through(codec, chunk_of(found, seed % 4), facts)[1], range(64)
        )
        assert all(np.array_equal(back, alone[i % 4]) for i, back in enumerate(together))


def test_every_bad_head_is_refused() -> None:
    found = layout("vec", tokens=16, dim=16)
    facts = facts_of(found, 16)
    codec = quantiser(8, 8)
    payload, back = through(codec, chunk_of(found), facts)
    for at, byte in [(0, 2), (1, 1), (1, 9), (2, 200), (3, 2), (4, 3), (5, 1), (6, 5), (8, 65)]:
        bad = payload.copy()
        bad[at] = byte
        with pytest.raises(CorruptBlock):
            codec.decode(bad, back, facts)
    for nbytes in (0, 8, 16, len(payload) - 1):
        with pytest.raises(CorruptBlock):
            codec.decode(payload[:nbytes], back, facts)
    with pytest.raises(CorruptBlock):
        codec.decode(payload, back[:-2], facts)


def test_refuses_at_start_in_words() -> None:
    facts = facts_of(layout("vec"))
    assert quantiser(8, 8).objection(facts) == ""
    lost = ChunkFacts("bf16", None, "an axis is packed in no regular way")
    assert "packed in no regular way" in quantiser(8, 8).objection(lost)
    assert "fp8 already" in quantiser(8, 8).objection(facts_of(layout("vec", "fp8")))
    odd = facts_of(layout("vec", dim=48))
    assert "power of two" in quantiser(4, 4, hadamard=True).objection(odd)


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_short_names_are_pipelines_that_are_lossy(name: str) -> None:
    made = named(name)
    found = layout("vec", layers=2, tokens=128, dim=64)
    chunk, facts = chunk_of(found), facts_of(found)
    payload, back = through(made, chunk, facts)
    assert made.lossy
    assert "not known" in made.objection(ChunkFacts("bf16", None, "nobody said"))
    quantised, _ = through(_stage(made), chunk, facts)
    assert len(payload) < len(quantised), "what zstd saves"
    assert not np.array_equal(back, chunk)


def test_codes_that_do_not_shrink_further_are_kept_all_the_same() -> None:
    found = layout("vec", layers=2, tokens=128, dim=64)
    uniform = np.random.default_rng(0).integers(0x3F80, 0x4000, found.nbytes // 2, dtype=np.uint16)
    payload, _ = through(named("int8"), uniform.view(np.uint8), facts_of(found))
    assert found.nbytes / len(payload) > 1.85


@pytest.mark.parametrize("name", ["int8", "int4", "k5v3", "fp8"])
def test_golden_payloads_decode_to_the_same_bits_for_ever(name: str) -> None:
    facts = facts_of(layout("plain", layers=1, tokens=16, heads=1, dim=16), 16)
    with np.load(GOLDEN / "quantise.npz") as golden:
        payload, chunk = golden[f"{name}_payload"], golden[f"{name}_chunk"]
    back = np.empty_like(chunk)
    quantiser(8, 8).decode(payload, back, facts)
    assert np.array_equal(back, chunk)


def _stage(pipeline: Codec) -> Codec:
    assert isinstance(pipeline, PipelineCodec)
    return pipeline._stages[0]
