"""Lossless codecs on real keys and values: what each saves and costs, the candidates that lost, and a fuzz.

Seconds are the thread's own on its core, MB are 10**6 bytes of the original, ratios without header and
padding of a record.
"""

import argparse
import resource
from pathlib import Path

import numpy as np
import zstandard
from _candidates import candidates
from _report import machine, report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.cli.bench_codec import make
from kvtier.cli.codec_rows import Array, ChunkSample, cut, entropy_bound, measure
from kvtier.codec import Bytes
from kvtier.codecs.planes import PlanesCodec
from kvtier.layout import chunk_layout
from kvtier.testing.codecs import decode_guarded, encoded, hostile

KV = Path(__file__).parents[1] / "tests" / "codecs" / "kv-bf16.npy"
BATCH = 1000  # hostile payloads per seed
TUNED = "{kind: zstd, level: 1, window_log: 15, min_match: 7, hash_log: 10}"
ORDERS = ("layer", "token", "channel")
CODECS = {
    **{name: name for name in ("raw", "lz4", "[planes, lz4]", "zstd", "lossless")},
    **{f"planes, zstd {n}": f"[planes, {{kind: zstd, level: {n}}}]" for n in (-1, 1, 3, 9)},
    "bytes, zstd": f"[{{kind: planes, split: bytes}}, {TUNED}]",
    "entropy coding alone": "[planes, {kind: zstd, window_log: 15, min_match: 7, hash_log: 6}]",
    **{
        f"layout {each}, lossless": f"[{{kind: layout, order: {each}}}, planes, {TUNED}]"
        for each in ORDERS
    },
    **{
        f"layout {each}, planes, lz4": f"[{{kind: layout, order: {each}}}, planes, lz4]"
        for each in ORDERS
    },
}
TARGETS = {"lossless": (1.42, 600.0, 1500.0)}
SIZES = (4, 16, 64, 256)  # KiB


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kv", type=Path, default=KV, help="bf16 bits, (k/v, layers, tokens, ...)")
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--cases", type=int, default=1_000_000, help="hostile payloads")
    arguments = parser.parse_args()
    machine()
    kv = np.load(arguments.kv)
    sample = cut(kv, "bf16", arguments.chunk_tokens)
    fuzz(cut(kv[:, :, 4:], "bf16", 4), arguments.cases)  # first: it looks at the peak of memory
    compare(sample)
    packed(sample)
    dictionaries(kv)


def compare(sample: ChunkSample) -> None:
    """Report every codec and candidate, and what zero-order coding of the planes would give."""
    bound = entropy_bound(sample)
    report("codecs", "zero-order bound of the planes", bound, "times")
    named = [(name, make(yaml)) for name, yaml in CODECS.items()]
    for name, codec in [*named, *candidates()]:
        row = measure(name, codec, sample)
        ratio, encode, decode = TARGETS.get(name, (None, None, None))
        assert row.lossless, name
        report("codecs", f"{name}: ratio", row.ratio, "times", ratio)
        report("codecs", f"{name}: encode", row.encode_mb_s, "MB/s", encode)
        report("codecs", f"{name}: decode", row.decode_mb_s, "MB/s", decode)
        if name == "lossless":
            report("codecs", "lossless: share of the bound", row.ratio / bound, "times", 0.97)


def packed(sample: ChunkSample) -> None:
    """Report chunks as vLLM's CPU backend packs them, a page per layer: per head, keys by channel, then values."""
    facts = sample.facts[0]
    assert facts.layout
    layers, tokens, heads, dim = facts.layout.shape
    halves = np.arange(2 * tokens * heads * dim).reshape(heads, 2, tokens * dim)
    keys = halves[:, 0].reshape(heads, dim, tokens).transpose(2, 0, 1)
    values = halves[:, 1].reshape(heads, tokens, dim).transpose(1, 0, 2)
    page = np.stack([keys, values])
    layout = chunk_layout("bf16", page, layers, 1)
    chunks = []
    for chunk in sample.chunks:
        plain = chunk.view(np.uint16).reshape(2, layers, tokens, heads, dim)
        pages = np.empty((layers, page.size), np.uint16)
        for layer in range(layers):
            pages[layer, page] = plain[:, layer]
        chunks.append(pages.reshape(-1).view(np.uint8))
    there = ChunkSample(chunks, [each._replace(layout=layout) for each in sample.facts])
    for name in ("lossless", *(f"layout {order}, lossless" for order in ORDERS)):
        row = measure(name, make(CODECS[name]), there)
        assert row.lossless, name
        report("codecs", f"packed, {name}: ratio", row.ratio, "times")
        report("codecs", f"packed, {name}: decode", row.decode_mb_s, "MB/s")


def dictionaries(kv: Array) -> None:
    """Train on one half of the tokens, compress the other, in chunks of several sizes."""
    token_nbytes = kv[:, :, :1].nbytes
    for kib in SIZES:
        sample = cut(kv, "bf16", max(1, (kib << 10) // token_nbytes))
        chunks = [_split(chunk) for chunk in sample.chunks]
        half = len(chunks) // 2
        pieces: list[bytes | bytearray | memoryview] = [c[: 16 << 10] for c in chunks[:half]]
        try:
            trained = zstandard.train_dictionary(64 << 10, pieces[:200])
        except zstandard.ZstdError as exc:
            print(f"left out: no dictionary from {half} chunks of {kib} KiB: {exc}")
            continue
        whole = sum(map(len, chunks[half:]))
        for name, dictionary in (("without", None), ("with", trained)):
            compressor = zstandard.ZstdCompressor(level=1, dict_data=dictionary)
            stored = sum(len(compressor.compress(chunk)) for chunk in chunks[half:])
            report("codecs", f"planes, zstd, {kib} KiB, {name} dictionary", whole / stored, "times")


def fuzz(sample: ChunkSample, cases: int) -> None:
    """Decode what nobody encoded: an exception other than CorruptBlock, or a byte outside, ends the bench."""
    names = (
        "lz4",
        "[planes, lz4]",
        "zstd",
        "zstd_dict",
        "lossless",
        "[layout, planes, zstd]",
        "int8",
        "int4",
    )
    codecs = {name: make(name) for name in names}
    chunk, facts = sample.chunks[0], sample.facts[0]
    payloads = {name: encoded(codec, chunk, facts) for name, codec in codecs.items()}
    through, done = 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=max(1, cases // BATCH),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**63), name=st.sampled_from(names))
    def decode(seed: int, name: str) -> None:
        nonlocal through, done
        rng, payload = np.random.default_rng(seed), payloads[name]
        for _ in range(BATCH):
            bad = hostile(rng, chunk if payload is None else payload)
            through += decode_guarded(codecs[name], bad, len(chunk), facts)
            done += 1

    while done < cases:
        decode()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    report("codecs", "hostile payloads decoded", done, "cases", cases)
    report("codecs", "of these, taken for some chunk", through, "cases")
    report("codecs", "peak of memory grown meanwhile", grown / 1024, "MiB")


def _split(chunk: Bytes) -> bytes:
    payload = encoded(PlanesCodec(), chunk)
    assert payload is not None
    return payload[:-1].tobytes()


if __name__ == "__main__":
    main()
