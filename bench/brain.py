"""The brain alone: lookups and plans per second, and memory per chunk, with a million chunks in tier 0.

Bytes per chunk are the growth of the process (RSS), keys included, while the chunks are stored through
the public calls; the arena's slots themselves are not part of it.
"""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from _report import machine, report

from kvtier.brain import TieredCache, TierSpec
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.types import BlockKey, GroupSpec, OpKind, OpResult, OpStatus, ScanBatch, WriteMode

CHUNKS = 1_000_000
PREFIX = 500
NBYTES = 2 << 20
GROUP = (0).to_bytes(4, "big")
ROUNDS = 5


def prefix(rng: random.Random) -> list[BlockKey]:
    """Make the keys of one request."""
    return [BlockKey(rng.randbytes(32) + GROUP) for _ in range(PREFIX)]


def make(lower: list[TierSpec]) -> TieredCache:
    """Make a brain of one full-attention group."""
    return TieredCache(
        groups=[GroupSpec(0, 256, None, NBYTES)], ranks=1, tier0=LruPolicy, lower=lower
    )


def rss() -> int:
    """Return the process's resident bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def store(cache: TieredCache, name: str, keys: list[BlockKey]) -> None:
    """Let one request store its whole prefix, and leave."""
    cache.arrive(name, [keys])
    cache.finish(cache.plan_store(name, keys).plan_id)
    cache.events()
    cache.depart(name)


def median_rate(n: int, run: Callable[[], object]) -> float:
    """Run a few times; return the median of `n` per second."""
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        rates.append(n / (time.perf_counter() - start))
    return statistics.median(rates)


def fill() -> tuple[TieredCache, list[list[BlockKey]]]:
    """Store a million chunks and report their memory; keep a sample of the prefixes."""
    rng = random.Random(1)
    cache = make([])
    cache.open(CHUNKS, "{}")
    before = rss()
    sample = []
    for i in range(CHUNKS // PREFIX):
        keys = prefix(rng)
        store(cache, f"r{i}", keys)
        if i % 20 == 0:
            sample.append(keys)
    per_chunk = (rss() - before) / CHUNKS
    report("brain", "memory per chunk in tier 0, RSS", per_chunk, "bytes", 300)
    return cache, sample


def look_up(cache: TieredCache, sample: list[list[BlockKey]]) -> None:
    """Ask for keys as the scheduler does, prefix by prefix."""
    for name, case in (("waiting", "lookup, hit"), ("absent", "lookup, hit, unknown request")):
        cache.arrive("waiting", [sample[0]])

        def ask(name: str = name) -> None:
            lookup = cache.lookup
            for keys in sample:
                for key in keys:
                    lookup(name, key)

        n = len(sample) * PREFIX
        report("brain", case, median_rate(n, ask), "lookups/s", 1e6)
    cache.depart("waiting")
    absent = prefix(random.Random(2))

    def miss() -> None:
        for key in absent:
            cache.lookup("waiting", key)

    report("brain", "lookup, miss", median_rate(PREFIX, miss), "lookups/s", 1e6)


def plan(cache: TieredCache, sample: list[list[BlockKey]]) -> None:
    """Time what a request of 500 chunks costs, call by call."""

    def requests(run: Callable[[str, list[BlockKey]], object]) -> Callable[[], None]:
        def every() -> None:
            for i, keys in enumerate(sample):
                run(f"s{i}", keys)

        return every

    n = len(sample)
    steps: list[tuple[str, Callable[[str, list[BlockKey]], object], float | None]] = [
        ("arrive and depart", lambda name, keys: cache.arrive(name, [keys]), 1000),
        ("plan_read, repeated", cache.plan_read, None),
        ("plan_load and finish", lambda r, k: cache.finish(cache.plan_load(r, k).plan_id), None),
        ("plan_store, all resident", cache.plan_store, None),
    ]
    for i, keys in enumerate(sample):
        cache.arrive(f"s{i}", [keys])

    def first_hit() -> None:
        for i, keys in enumerate(sample):
            cache.cancel(f"s{i}")
            cache.plan_read(f"s{i}", keys)

    def idle_steps() -> None:
        for _ in range(1000):
            cache.drain()
            cache.stats()

    report("brain", "drain and stats, nothing to do", median_rate(1000, idle_steps), "steps/s")
    report("brain", f"plan_read, a hit of {PREFIX}", median_rate(n, first_hit), "requests/s")
    for case, run, target in steps:
        rate = median_rate(n, requests(run))
        report("brain", f"{case} of {PREFIX} chunks", rate, "requests/s", target)


def evict(cache: TieredCache) -> None:
    """Store into a full cache: every chunk takes a victim's slot."""
    rng = random.Random(3)
    fresh = [prefix(rng) for _ in range(100)]
    start = time.perf_counter()
    for i, keys in enumerate(fresh):
        store(cache, f"e{i}", keys)
    rate = len(fresh) * PREFIX / (time.perf_counter() - start)
    report("brain", "store with eviction", rate, "chunks/s")
    start = time.perf_counter()
    cache.reset("{}")
    report("brain", "reset of a million chunks", time.perf_counter() - start, "s")


def restart() -> None:
    """Take in the scan of a million records, and find the longest step."""
    rng = random.Random(4)
    tier = TierSpec(
        name="nvme",
        capacity=1 << 50,
        write=WriteMode.IDLE,
        deadline_s=2.0,
        persistent=True,
        eviction=LruPolicy,
    )
    cache = make([tier])
    cache.open(1000, "{}")
    before = rss()
    opens = [op for op in cache.drain() if op.kind is OpKind.OPEN]
    cache.complete([OpResult(0, op.op, OpStatus.OK) for op in opens])
    steps: list[float] = []
    for i in range(0, CHUNKS, 8192):
        n = min(8192, CHUNKS - i)
        keys: list[bytes] = [rng.randbytes(32) + GROUP for _ in range(n)]
        times = [float(i + j) for j in range(n)]
        batch = ScanBatch(0, 1, opens[0].op, keys, [NBYTES] * n, times, i + n == CHUNKS)
        start = time.perf_counter()
        cache.scanned(batch)
        steps.append(time.perf_counter() - start)
    while cache.stats().tiers[1].chunks < CHUNKS:
        start = time.perf_counter()
        cache.drain()
        steps.append(time.perf_counter() - start)
        cache.events()
    report("brain", "scan of a million records, median step", 1e3 * statistics.median(steps), "ms")
    report("brain", "scan of a million records, longest step", 1e3 * max(steps), "ms")
    del batch, keys, times
    per_chunk = (rss() - before) / CHUNKS
    report("brain", "memory per chunk in a lower tier, RSS", per_chunk, "bytes", 300)


def main() -> None:
    """Print every result."""
    machine()
    cache, sample = fill()
    look_up(cache, sample)
    plan(cache, sample)
    evict(cache)
    del cache, sample
    restart()


if __name__ == "__main__":
    main()
