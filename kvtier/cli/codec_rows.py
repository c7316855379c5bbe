"""What a codec does to real keys and values: bytes, seconds on one core, errors."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.codec import MARGIN, Bytes, ChunkFacts, Codec
from kvtier.codecs.elements import E4M3, WIDEN
from kvtier.io_process.records import WORTH_IT
from kvtier.layout import ELEMENTS, ChunkLayout, Plane

Array = npt.NDArray[np.generic]

ROUNDS = 3


class CodecRow(msgspec.Struct, frozen=True):
    """One codec over all chunks; MB are 10**6 bytes of the original, seconds the thread's own on its
    core, the best of three rounds; a chunk that stays raw costs a copy.
    """

    codec: str
    ratio: float  # original bytes / stored bytes, without a record's header and padding
    encode_mb_s: float
    decode_mb_s: float
    max_abs_err: float
    rel_err: float  # norm of the difference / norm of the original
    lossless: bool


class ChunkSample(NamedTuple):
    """Chunks, and what a codec is told of each."""

    chunks: list[Bytes]
    facts: list[ChunkFacts]

    @property
    def nbytes(self) -> int:
        """Original bytes."""
        return sum(map(len, self.chunks))


def cut(kv: Array, dtype: str, chunk_tokens: int) -> ChunkSample:
    """Cut (k/v, layers, tokens, heads, head_dim) into whole chunks; what is left over is left out."""
    layers, tokens, heads, dim = kv.shape[1:]
    layout = plain_layout(dtype, (layers, chunk_tokens, heads, dim))
    starts = range(0, tokens - chunk_tokens + 1, chunk_tokens)
    chunks = [np.ascontiguousarray(kv[:, :, i : i + chunk_tokens]) for i in starts]
    return ChunkSample(
        [chunk.reshape(-1).view(np.uint8) for chunk in chunks],
        [ChunkFacts(dtype, layout, end_token=i + chunk_tokens) for i in starts],
    )


def plain_layout(dtype: str, shape: tuple[int, int, int, int]) -> ChunkLayout:
    """Describe a chunk in the order of its axes: keys, then values."""
    layers, tokens, heads, dim = shape
    n = layers * tokens * heads * dim
    keys = Plane(
        start=0,
        layers=((layers, n // layers),),
        tokens=((tokens, heads * dim),),
        heads=((heads, dim),),
        dim=((dim, 1),),
    )
    raw = {"dtype": dtype, "keys": keys, "values": msgspec.structs.replace(keys, start=n)}
    return msgspec.convert(raw, ChunkLayout)


def measure(name: str, codec: Codec, sample: ChunkSample) -> CodecRow:
    """Encode and decode every chunk, as an I/O thread would."""
    out = np.empty(max(map(len, sample.chunks)) + MARGIN, np.uint8)
    encode_s = min(_encode(codec, sample, out) for _ in range(ROUNDS))
    payloads = [_payload(codec, *each, out) for each in zip(*sample, strict=True)]
    decode_s = min(_decode(codec, sample, payloads, out) for _ in range(ROUNDS))
    stored = sum(len(c if p is None else p) for c, p in zip(sample.chunks, payloads, strict=True))
    worst, off, norm, exact = 0.0, 0.0, 0.0, True
    for chunk, facts, payload in zip(*sample, payloads, strict=True):
        back = out[: len(chunk)]
        if payload is None:
            back = chunk
        else:
            codec.decode(payload, back, facts)
        exact &= bool(np.array_equal(back, chunk))
        difference, before = errors(facts.dtype, chunk, back)
        worst = max(worst, float(difference.max(initial=0.0)))
        off += float(np.square(difference, dtype=np.float64).sum())
        norm += float(np.square(before, dtype=np.float64).sum())
    return CodecRow(
        codec=name,
        ratio=round(sample.nbytes / stored, 4),
        encode_mb_s=round(sample.nbytes / encode_s / 1e6, 1),
        decode_mb_s=round(sample.nbytes / decode_s / 1e6, 1),
        max_abs_err=worst,
        rel_err=(off / norm) ** 0.5 if norm else 0.0,
        lossless=exact,
    )


def errors(dtype: str, chunk: Bytes, back: Bytes) -> tuple[Array, Array]:
    """Return size of the error, and value, of each element that is finite before and after."""
    before, after = (_values(dtype, each) for each in (chunk, back))
    finite = np.isfinite(before) & np.isfinite(after)
    return np.abs(after[finite] - before[finite]), before[finite]


def entropy_bound(sample: ChunkSample) -> float:
    """Return the ratio that coding each plane of a 16-bit chunk by its zero-order entropy would give.

    The planes are those of `planes`: 8 bits of exponent, then sign and mantissa; over all chunks together.
    """
    elements = np.concatenate([chunk.view(np.uint16) for chunk in sample.chunks])
    exponent = (elements >> 7 & 0xFF).astype(np.uint8)
    rest = (elements >> 8 & 0x80 | elements & 0x7F).astype(np.uint8)
    return 16 / (entropy(exponent) + entropy(rest))


def entropy(plane: Bytes) -> float:
    """Return the zero-order entropy of bytes, in bits per byte (Shannon 1948)."""
    counts = np.bincount(plane, minlength=256)
    shares = counts[counts > 0] / len(plane)
    return float(-(shares * np.log2(shares)).sum())


def _values(dtype: str, chunk: Bytes) -> Array:
    if dtype == "fp8":
        return np.asarray(E4M3[chunk])
    with np.errstate(invalid="ignore"):
        return np.asarray(WIDEN[dtype](chunk.view(ELEMENTS[dtype])))


def _payload(codec: Codec, chunk: Bytes, facts: ChunkFacts, out: Bytes) -> Bytes | None:
    n = codec.encode(chunk, out, facts)
    return None if n is None or n > len(chunk) * WORTH_IT else out[:n].copy()


def _encode(codec: Codec, sample: ChunkSample, out: Bytes) -> float:
    started = time.thread_time()
    for chunk, facts in zip(*sample, strict=True):
        if codec.encode(chunk, out, facts) is None:
            out[: len(chunk)] = chunk
    return time.thread_time() - started


def _decode(
    codec: Codec, sample: ChunkSample, payloads: Sequence[Bytes | None], out: Bytes
) -> float:
    started = time.thread_time()
    for chunk, facts, payload in zip(*sample, payloads, strict=True):
        if payload is None:
            out[: len(chunk)] = chunk
        else:
            codec.decode(payload, out[: len(chunk)], facts)
    return time.thread_time() - started
