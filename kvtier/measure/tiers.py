"""Write and read chunks of one tier through a real I/O process, some of them at a time."""

import itertools
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from kvtier import topology
from kvtier.config import TierConfig, default_dram_nbytes, to_builtins
from kvtier.errors import TierError
from kvtier.io_process.client import IoClient, IoSetup
from kvtier.io_process.record import namespace_of
from kvtier.memory.arena import Arena
from kvtier.memory.region import Region
from kvtier.registry import in_memory
from kvtier.tier import Bytes
from kvtier.tiers import directory
from kvtier.types import PAGE, OpKind, OpResult, OpStatus, TierOp
from kvtier.units import format_nbytes

MANIFEST = '{"kvtier": "bench tiers"}'
_POLL_S = 0.00005
_LEAST = 8  # chunks of each point


HEADS = ("tier", "chunk", "threads", "depth", "way", "GB/s", "median ms", "p99 ms")
"""What a table of points has above its columns."""


class Point(NamedTuple):
    """One tier at one chunk size, with so many operations under way."""

    tier: str
    chunk_nbytes: int
    threads: int
    depth: int
    way: str  # write or read
    gb_s: float
    median_s: float  # from its submission to its answer
    p99_s: float
    record_nbytes: float  # of a chunk, as the tier's codec leaves it

    def cells(self) -> list[str]:
        """Write it as the row of a table."""
        sizes = [format_nbytes(self.chunk_nbytes), str(self.threads), str(self.depth)]
        times = [f"{seconds * 1e3:.2f}" for seconds in (self.median_s, self.p99_s)]
        return [self.tier, *sizes, self.way, f"{self.gb_s:.2f}", *times]


class _Bench:
    """One I/O process over one tier."""

    def __init__(self, client: IoClient, threads: int, tier: TierConfig, chunk_nbytes: int) -> None:
        self._client = client
        self._threads = threads
        self._tier = tier
        self._chunk_nbytes = chunk_nbytes
        self._ids = itertools.count(1)

    def point(self, kind: OpKind, chunks: int, depth: int) -> Point:
        """Measure one way."""
        seconds, results = self.run(kind, chunks, depth)
        median_s, p99_s = np.percentile([took for took, _ in results], (50, 99)).tolist()
        return Point(
            self._tier.name,
            self._chunk_nbytes,
            self._threads,
            depth,
            kind.name.lower(),
            chunks * self._chunk_nbytes / seconds / 1e9,
            median_s,
            p99_s,
            sum(nbytes for _, nbytes in results) / chunks,
        )

    def run(self, kind: OpKind, chunks: int, depth: int) -> tuple[float, list[tuple[float, int]]]:
        """Run one operation per chunk, `depth` at a time; return seconds in all, and of each with its bytes."""
        begun: dict[int, float] = {}
        each: list[tuple[float, int]] = []
        started = time.perf_counter()
        queued = 0
        while len(each) < chunks:
            while queued < chunks and len(begun) < depth:
                op = self._op(kind, queued, queued % depth)
                begun[op.op] = time.perf_counter()
                self._client.submit([op])
                queued += 1
            each += self._ended(begun)
        return time.perf_counter() - started, each

    def open(self) -> None:
        """Open the tier under a namespace of its own."""
        self._client.submit([op := TierOp(next(self._ids), OpKind.OPEN, 1, text=MANIFEST)])
        begun = {op.op: 0.0}
        while begun:
            self._ended(begun)

    def _op(self, kind: OpKind, number: int, slot: int) -> TierOp:
        key = number.to_bytes(36, "little")
        return TierOp(next(self._ids), kind, 1, key, slot, deadline_s=600.0)

    def _ended(self, begun: dict[int, float]) -> list[tuple[float, int]]:
        ended = []
        for result in self._client.poll():
            if isinstance(result, OpResult) and result.op in begun:
                if result.status is not OpStatus.OK:
                    path = self._tier.options.get("path")
                    where = f"{self._tier.name} at {path}" if path else self._tier.name
                    raise TierError(where, "bench", f"{result.error or result.status}")
                ended.append((time.perf_counter() - begun.pop(result.op), result.nbytes))
        if not ended:
            time.sleep(_POLL_S)
        return ended


def measure(
    tier: TierConfig, chunk_nbytes: int, *, threads: int, depths: Sequence[int], nbytes: int
) -> list[Point]:
    """Write, read and remove about `nbytes` at each depth, in a tier of no more than that takes.

    Raises:
        ConfigError: the tier cannot be opened: an engine uses it, for example.
        TierError: an operation failed.
    """
    assert tier.capacity is not None
    record = chunk_nbytes + PAGE
    chunks = max(_LEAST, *depths, nbytes // chunk_nbytes)
    chunks = max(1, min(chunks, tier.capacity // 2 // record))
    # The depth is what is looked for.
    small = msgspec.structs.replace(tier, capacity=2 * chunks * record, depth=None)
    found = []
    with _bench(small, chunk_nbytes, threads, max(depths)) as bench:
        bench.open()
        if in_memory(tier.kind):  # the first pass takes the pages from the system
            bench.run(OpKind.WRITE, chunks, max(depths))
        for depth in depths:
            found += [bench.point(kind, chunks, depth) for kind in (OpKind.WRITE, OpKind.READ)]
            bench.run(OpKind.REMOVE, chunks, max(depths))
    return found


def measure_dram(tier: TierConfig, chunk_nbytes: int, nbytes: int) -> list[Point]:
    """Copy chunks into and out of memory bound as the arena would be, on one core."""
    capacity = default_dram_nbytes(1) if tier.capacity is None else tier.capacity
    nbytes = min(nbytes, capacity, topology.free_nbytes() // 2)
    region = Region(max(nbytes, chunk_nbytes), tier.numa or (), shared=True)
    slots = [
        region.bytes[at : at + chunk_nbytes]
        for at in range(0, len(region.bytes) - chunk_nbytes + 1, chunk_nbytes)
    ]
    chunk = np.ones(chunk_nbytes, np.uint8)
    points = []
    for way in ("touch", "write", "read"):  # the first pass takes the pages from the system
        each = [_copy_s(slot, chunk, way) for slot in slots]
        gb_s = len(each) * chunk_nbytes / sum(each) / 1e9
        median_s, p99_s = np.percentile(each, (50, 99)).tolist()
        points.append(
            Point(tier.name, chunk_nbytes, 1, 1, way, gb_s, median_s, p99_s, chunk_nbytes)
        )
    region.close()
    return points[1:]


def _copy_s(slot: Bytes, chunk: Bytes, way: str) -> float:
    target, source = (chunk, slot) if way == "read" else (slot, chunk)
    return timeit.timeit(lambda: np.copyto(target, source), number=1)


@contextmanager
def _bench(tier: TierConfig, chunk_nbytes: int, threads: int, slots: int) -> Iterator[_Bench]:
    arena = Arena(slots, -(-chunk_nbytes // PAGE) * PAGE)
    for slot in range(slots):  # shrinks to about half, as KV does under a fast codec at best
        random = np.random.default_rng(slot)
        arena.slot(slot)[:] = random.integers(0, 16, arena.slot_nbytes, dtype=np.uint8)
    setup = IoSetup(
        arena_nbytes=arena.nbytes,
        slot_nbytes=arena.slot_nbytes,
        group_nbytes={0: chunk_nbytes},
        tiers=[to_builtins(tier)],
        threads=threads,
        log_level="WARNING",
    )
    client = IoClient(setup, arena.fd)
    opened = False
    try:
        client.wait_ready()
        opened = True
        yield _Bench(client, threads, tier, chunk_nbytes)
    finally:
        client.close(10.0)
        arena.close()
        path = tier.options.get("path")
        if opened and tier.kind == "file" and isinstance(path, str):
            with suppress(OSError):
                directory.discard(Path(path) / namespace_of(MANIFEST))
