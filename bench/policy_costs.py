"""How the cost of each eviction policy grows: with the depth of a prefix, with the chunks of the tier, with what is spared.

Processor time of the thread; Python's collector is off. `longest` is the longest single call of its case. Names after
the command choose policies.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from _report import machine, report

from kvtier.brain import TieredCache
from kvtier.config import Plugin
from kvtier.facts import GroupKeys, RequestFacts, RequestHints, TierFacts
from kvtier.policy import EvictionPolicy
from kvtier.registry import EVICTION, build
from kvtier.testing.policies import FixedFacts, insert_chain, touch_chain
from kvtier.types import BlockKey, GroupSpec

SIZES = (10_000, 100_000, 1_000_000)
DEPTHS = (64, 512, 4096)
PREFIX = 100
BATCH = 16
GROUP = (0).to_bytes(4, "big")


class Times(NamedTuple):
    """The calls of one case."""

    mean_us: float
    longest_ms: float


def prefix(rng: random.Random, n: int = PREFIX) -> list[BlockKey]:
    """Make the keys of one prefix."""
    return [BlockKey(rng.randbytes(32) + GROUP) for _ in range(n)]


def timed(calls: Iterable[Callable[[], object]], each: int = 1) -> Times:
    """Time calls that handle `each` chunks."""
    every = []
    for call in calls:
        start = time.thread_time()
        call()
        every.append(time.thread_time() - start)
    return Times(1e6 * sum(every) / len(every) / each, 1e3 * max(every))


def show(case: str, times: Times) -> None:
    """Report one case."""
    report("policy costs", case, times.mean_us, "us")
    report("policy costs", f"{case}, longest", times.longest_ms, "ms", 5)


def residents(name: str, n: int) -> None:
    """Report what chunks cost in a tier of `n`."""
    rng, facts = random.Random(1), FixedFacts(1 << 50)
    policy = build("eviction", Plugin(kind=name), facts)
    case = f"{name}, {n} chunks"
    prefixes = [prefix(rng) for _ in range(n // PREFIX)]

    def serve(keys: list[BlockKey]) -> None:
        facts.now += 0.1
        request = RequestFacts("", (GroupKeys(keys, 256, None),), facts.now, RequestHints())
        policy.arrived(request)
        insert_chain(policy, keys)
        policy.departed(request)

    show(f"{case}, serve", timed((lambda k=k: serve(k) for k in prefixes), PREFIX))
    facts.now += 3600
    show(f"{case}, first victims", timed([lambda: policy.victims(BATCH, lambda _: False)]))
    sample = [rng.choice(prefixes) for _ in range(200)]
    show(f"{case}, touch", timed((lambda k=k: touch_chain(policy, k) for k in sample), PREFIX))
    pinned = {keys[-1] for keys in prefixes[: -len(prefixes) // 100]}

    def spare() -> None:
        policy.victims(BATCH, pinned.__contains__)

    show(f"{case}, oldest 99 % pinned, victims", timed([spare] * 20))
    fresh = [prefix(rng, BATCH) for _ in range(200)]
    show(f"{case}, replace", timed((lambda k=k: replace(policy, k) for k in fresh), BATCH))


def replace(policy: EvictionPolicy, keys: list[BlockKey]) -> None:
    """Let a prefix take the place of victims."""
    for key in policy.victims(len(keys), lambda _: False):
        policy.remove(key)
        policy.evicted(key)
    insert_chain(policy, keys)


def depth(name: str, n: int) -> None:
    """Report what chunks cost that come one by one behind `n` others: decoded ones, and records head first."""
    rng, policy = random.Random(2), build("eviction", Plugin(kind=name), FixedFacts(1 << 50))
    requests = [prefix(rng, n) for _ in range(8)]
    for keys in requests:
        insert_chain(policy, keys)

    def decode() -> None:
        for keys in requests:
            key = prefix(rng, 1)[0]
            policy.insert(key, keys[-1])
            keys.append(key)
        policy.victims(1, lambda _: False)

    show(f"{name}, {n} deep, append", timed([decode] * 50, len(requests)))
    written = [prefix(rng, n) for _ in range(8)]

    def write(i: int) -> None:
        for keys in written:
            policy.insert(keys[i], keys[i - 1] if i else None)

    show(
        f"{name}, {n} deep, head first",
        timed((lambda i=i: write(i) for i in range(n)), len(written)),
    )


def awaited(name: str, n: int) -> None:
    """Report a store of one chunk into a full tier of which a queue awaits nine tenths."""
    rng = random.Random(3)

    def eviction(facts: TierFacts) -> EvictionPolicy:
        return build("eviction", Plugin(kind=name), facts)

    group = GroupSpec(0, 256, None, 1)
    cache = TieredCache(groups=[group], ranks=1, tier0=eviction, lower=[])
    cache.open(n, "{}")
    prefixes = [prefix(rng) for _ in range(n // PREFIX)]
    for i, keys in enumerate(prefixes):
        store(cache, f"r{i}", keys)
    for i, keys in enumerate(prefixes[: n // PREFIX * 9 // 10]):
        cache.arrive(f"w{i}", [keys])
    fresh = [prefix(rng, 1) for _ in range(100)]
    stores = [lambda i=i, keys=keys: store(cache, f"n{i}", keys) for i, keys in enumerate(fresh)]
    show(f"{name}, {n} chunks, 90 % awaited, store of one", timed(stores))


def store(cache: TieredCache, name: str, keys: list[BlockKey]) -> None:
    """Let one request store its prefix, and leave."""
    cache.arrive(name, [keys])
    cache.finish(cache.plan_store(name, keys).plan_id)
    cache.events()
    cache.depart(name)


def main(names: list[str]) -> None:
    """Print every result."""
    machine()
    gc.disable()
    for name in names or sorted(EVICTION):
        for n in DEPTHS:
            depth(name, n)
        for n in SIZES:
            residents(name, n)
            awaited(name, n)


if __name__ == "__main__":
    main(sys.argv[1:])
