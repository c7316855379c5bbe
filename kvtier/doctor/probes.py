"""What only trying tells: whether memory can be bound, and how fast it is on each node."""

import timeit
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kvtier import topology
from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.memory.region import Region
from kvtier.tier import Bytes
from kvtier.units import format_nbytes

_NBYTES = 256 << 20  # beyond most caches
_LEAST = 8 << 20
_LINE = 64
_STEPS = 5_000
_WALKS = 20


class MemorySpeed(NamedTuple):
    """A node's memory, seen from the processors that this process runs on."""

    read_gb_s: float
    write_gb_s: float
    latency_ns: float  # beyond the caches'


def binding(patient: Patient) -> Iterator[Finding]:
    """Bind memory to every node, fill it in, look where it is, and measure it there."""
    for node in topology.nodes():
        if not node.nbytes:
            continue
        nbytes = min(_NBYTES, node.free_nbytes // 4 // _LEAST * _LEAST)
        if nbytes < _LEAST:
            said = f"node {node.number}: {format_nbytes(node.free_nbytes)} are free"
            yield Finding("placement", Level.WARN, said, "too little to measure it")
        else:
            yield from _on(node.number, nbytes)


def _on(node: int, nbytes: int) -> Iterator[Finding]:
    region = Region(nbytes, [node], shared=False)
    try:
        region.bytes[:] = 1
        where = region.locate()
        speed = measure(region)
    finally:
        region.close()
    how = (
        f"reads {speed.read_gb_s:.1f}, writes {speed.write_gb_s:.1f} GB/s on one core, "
        f"{speed.latency_ns:.0f} ns"
    )
    if region.refused or where.error:
        reason = region.refused or where.error
        advice = "docker run --cap-add SYS_NICE, or a seccomp profile that allows mbind, move_pages"
        yield Finding("placement", Level.WARN, f"node {node}: {reason}; {how}", advice)
    elif where.share([node]) < 1:
        said = f"node {node}: only {where.share([node]):.0%} of the pages are there; {how}"
        yield Finding("placement", Level.WARN, said, "the node may be full, or its zone movable")
    else:
        yield Finding("placement", Level.OK, f"node {node}: pages are where they belong; {how}")


def measure(region: Region) -> MemorySpeed:
    """Measure a region's bandwidth on this core and the latency of loads that depend on each other.

    The best of several passes: what else runs here makes memory slower, never faster.
    """
    near = np.ones(1 << 18, np.uint8)
    pieces = list(region.bytes.reshape(-1, len(near)))

    def write() -> None:
        for piece in pieces:
            np.copyto(piece, near)

    def read() -> None:
        for piece in pieces:
            np.copyto(near, piece)

    writes, reads = (min(timeit.repeat(work, number=1, repeat=3)) for work in (write, read))
    far, cached = _step_s(region.bytes), _step_s(np.zeros(1 << 14, np.uint8))
    nbytes = len(region.bytes) / 1e9
    return MemorySpeed(nbytes / reads, nbytes / writes, max(0.0, far - cached) * 1e9)


def _step_s(buf: Bytes) -> float:
    """Seconds per step of a walk in random order, one load after the other; the interpreter's own included."""
    words = buf.view(np.int64)
    stride = _LINE // 8
    order = np.random.default_rng(0).permutation(len(words) // stride) * stride
    words[order] = np.roll(order, -1)
    view = memoryview(words)
    at = 0

    def walk() -> None:
        nonlocal at
        for _ in range(_STEPS):
            at = view[at]

    return min(timeit.repeat(walk, number=1, repeat=_WALKS)) / _STEPS
