"""From what was measured to what to configure: the least that gives nearly the most, and how fast that is."""

from collections.abc import Sequence
from typing import NamedTuple

from kvtier.config import MediumConfig
from kvtier.measure.tiers import Point

_NEARLY = 0.95
_NEARLY_CHUNK = 0.9  # a larger chunk is hit less often: it has to be worth it
_LEAST_DEPTH = 2  # that can be configured


class Choice(NamedTuple):
    """What one tier wants."""

    threads: int
    depth: int  # operations under way at a time: a thread works on one
    chunk_nbytes: int


class Advice(NamedTuple):
    """What one tier wants, and how fast it was so."""

    tier: str
    threads: int
    depth: int
    chunk_nbytes: int
    read_gb_s: float
    latency_s: float  # of one read alone
    medium: MediumConfig


def choose(points: Sequence[Point], threads: int) -> Choice:
    """Choose for one tier that runs with `threads` now, by its reads: writes go behind, nobody waits for them.

    Only the depth is one that writes need too: it is shared.
    """
    reads = [point for point in points if point.way == "read"]
    as_now = [point for point in reads if point.threads == threads]
    chunk_nbytes = _least(as_now, "chunk_nbytes", _NEARLY_CHUNK)
    of_chunk = [p for p in points if (p.chunk_nbytes, p.threads) == (chunk_nbytes, threads)]
    depth = max(
        _least([p for p in of_chunk if p.way == way], "depth", _NEARLY)
        for way in {p.way for p in of_chunk}
    )
    deepest = max(point.depth for point in reads)
    swept = {point.chunk_nbytes for point in reads if point.threads != threads}
    deep = [p for p in reads if p.depth == deepest and (not swept or p.chunk_nbytes in swept)]
    wanted = _least(deep, "threads", _NEARLY)
    if wanted < depth or wanted > threads:  # the threads of now bounded what depth could give
        depth = wanted
    return Choice(wanted, max(_LEAST_DEPTH, depth), chunk_nbytes)


def confirmed(choice: Choice, points: Sequence[Point]) -> Advice:
    """Say how fast a choice is by what was measured of it: one operation alone, and as many as it allows."""
    reads = sorted((point for point in points if point.way == "read"), key=lambda p: p.depth)
    best = max(point.gb_s for point in reads)
    medium = _medium(points, reads[0])
    return Advice(reads[0].tier, *choice, best, reads[0].median_s, medium)


def _medium(points: Sequence[Point], alone: Point) -> MediumConfig:
    """Split what a tier takes into a bandwidth, of records at its best, and what is left of one read alone."""
    best = {
        way: max(p.gb_s * 1e9 * p.record_nbytes / p.chunk_nbytes for p in points if p.way == way)
        for way in ("read", "write")
    }
    latency_s = max(0.0, alone.median_s - alone.record_nbytes / best["read"])
    return MediumConfig(**best, latency_s=latency_s)


def _least(reads: Sequence[Point], field: str, share: float) -> int:
    """Return the smallest value of `field` whose best read is this share of the best of all."""
    best: dict[int, float] = {}
    for point in reads:
        value: int = getattr(point, field)
        best[value] = max(best.get(value, 0.0), point.gb_s)
    enough = share * max(best.values())
    return min(value for value, gb_s in best.items() if gb_s >= enough)
