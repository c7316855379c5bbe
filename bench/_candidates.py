"""Other libraries on the same chunks: what codecs were chosen from. What is not installed is left out."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec

Coder = Callable[[Any], Any]


class FunctionCodec(Codec):
    """A pair of functions from a buffer to bytes, `wrap` is how the library wants its chunk."""

    id = 65535
    name = "candidate"

    def __init__(self, encode: Coder, decode: Coder, wrap: Coder = lambda chunk: chunk) -> None:
        self._encode = encode
        self._decode = decode
        self._wrap = wrap

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        payload = self._encode(self._wrap(chunk))
        if len(payload) > min(len(out), len(chunk)):
            return None
        out[: len(payload)] = np.frombuffer(payload, np.uint8)
        return len(payload)

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        out[:] = np.frombuffer(self._decode(buf.tobytes()), np.uint8)


def candidates() -> Iterator[tuple[str, Codec]]:
    """List every candidate whose library is here."""
    for name, make in _LIBRARIES.items():
        try:
            library = importlib.import_module(name)
        except ModuleNotFoundError:
            print(f"left out: {name} is not installed")
            continue
        yield from make(library)


def _blosc2(blosc2: Any) -> Iterator[tuple[str, Codec]]:
    blosc2.set_nthreads(1)
    shuffles = {"shuffle": blosc2.Filter.SHUFFLE, "bitshuffle": blosc2.Filter.BITSHUFFLE}
    coders = {"lz4": (blosc2.Codec.LZ4, 5), "zstd": (blosc2.Codec.ZSTD, 1)}
    for shuffle, filter_id in shuffles.items():
        for coder, (codec, level) in coders.items():
            yield (
                f"blosc2 {shuffle} {coder}",
                FunctionCodec(
                    lambda chunk, c=codec, n=level, f=filter_id: blosc2.compress2(
                        chunk, codec=c, clevel=n, filters=[f], typesize=2, nthreads=1
                    ),
                    lambda payload: blosc2.decompress2(payload, nthreads=1),
                ),
            )


def _numcodecs(numcodecs: Any) -> Iterator[tuple[str, Codec]]:
    blosc = importlib.import_module("numcodecs.blosc")
    blosc.set_nthreads(1)
    for name, shuffle in (("shuffle", blosc.SHUFFLE), ("bitshuffle", blosc.BITSHUFFLE)):
        codec = blosc.Blosc(cname="zstd", clevel=1, shuffle=shuffle)
        halves = FunctionCodec(codec.encode, codec.decode, lambda chunk: chunk.view(np.uint16))
        yield f"numcodecs blosc {name} zstd", halves


def _pcodec(pcodec: Any) -> Iterator[tuple[str, Codec]]:
    for level in (1, 4):
        config = pcodec.ChunkConfig(compression_level=level)
        yield (
            f"pcodec u16 level {level}",
            FunctionCodec(
                lambda chunk, c=config: pcodec.standalone.simple_compress(chunk, c),
                pcodec.standalone.simple_decompress,
                lambda chunk: chunk.view(np.uint16),
            ),
        )


def _isal(isal: Any) -> Iterator[tuple[str, Codec]]:
    igzip = importlib.import_module("isal.isal_zlib")
    for level in (0, 1):
        codec = FunctionCodec(lambda chunk, n=level: igzip.compress(chunk, n), igzip.decompress)
        yield f"planes, isal level {level}", _after_planes(codec)


def _cramjam(cramjam: Any) -> Iterator[tuple[str, Codec]]:
    zstd = cramjam.zstd
    codec = FunctionCodec(lambda c: memoryview(zstd.compress(c, 1)), lambda p: zstd.decompress(p))
    yield "planes, cramjam zstd 1", _after_planes(codec)


def _openzl(openzl: Any) -> Iterator[tuple[str, Codec]]:
    zl = importlib.import_module("openzl.ext")
    graphs = {"huffman": zl.graphs.Huffman, "fse": zl.graphs.Fse, "zstd": zl.graphs.Zstd}
    for name, graph in graphs.items():
        compressor = zl.Compressor()
        head = zl.nodes.BFloat16Deconstruct()(compressor, zl.graphs.Store(), graph())
        compressor.select_starting_graph(head)
        yield (
            f"openzl bf16, {name}",
            FunctionCodec(_openzl_encode(zl, compressor), _openzl_decode(zl)),
        )


def _openzl_encode(zl: Any, compressor: Any) -> Coder:
    context = zl.CCtx()

    def encode(chunk: Bytes) -> bytes:
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        given = zl.Input(zl.Type.Numeric, chunk.view(np.uint16))
        return bytes(context.compress([given]))

    return encode


def _openzl_decode(zl: Any) -> Coder:
    context = zl.DCtx()

    def decode(payload: bytes) -> Bytes:
        (found,) = context.decompress(payload)
        return np.ascontiguousarray(found.content.as_nparray()).view(np.uint8)

    return decode


def _after_planes(inner: Codec) -> Codec:
    """Let `planes` go first, as it does for zstd."""
    planes = importlib.import_module("kvtier.codecs.planes").PlanesCodec()
    room = np.empty(1 << 23, np.uint8)

    def encode(chunk: Bytes) -> Bytes:
        n = planes.encode(chunk, room, ChunkFacts("bf16"))
        out = np.empty(n, np.uint8)
        used = inner.encode(room[:n], out)
        return room[:n] if used is None else out[:used]

    def decode(payload: bytes) -> Bytes:
        split = np.frombuffer(memoryview(inner._decode(payload)), np.uint8)  # type: ignore[attr-defined]
        out = np.empty(len(split) - 1, np.uint8)
        planes.decode(split, out)
        return out

    return FunctionCodec(encode, decode)


_LIBRARIES: dict[str, Callable[[Any], Iterator[tuple[str, Codec]]]] = {
    "blosc2": _blosc2,
    "numcodecs": _numcodecs,
    "pcodec": _pcodec,
    "isal": _isal,
    "cramjam": _cramjam,
    "openzl": _openzl,
}
