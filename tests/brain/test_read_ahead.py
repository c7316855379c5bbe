"""Bytes that were read ahead: each is useful or wasted once, or still waits."""

from kvtier.brain import CacheStats
from kvtier.brain.read_ahead import ReadAhead
from kvtier.testing.policies import chain


def test_every_byte_is_counted_once() -> None:
    counters = CacheStats()
    ahead = ReadAhead(counters)
    used, unused, asked, waits = chain("k", 4)
    for key in (used, unused, waits):
        ahead.landed(key, 10, awaited=False)
    ahead.landed(asked, 10, awaited=True)
    ahead.used([used, asked, used])
    ahead.left(unused)
    ahead.left(used)
    assert (counters.prefetched_bytes, counters.useful_bytes, counters.wasted_bytes) == (40, 20, 10)
    ahead.clear()
    assert (counters.useful_bytes, counters.wasted_bytes) == (20, 20)
