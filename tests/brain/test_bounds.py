"""What one step costs does not grow with the queue, with how many conversations are idle, or with the arena."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvtier.brain import TieredCache, TierSpec, budgets, plans, residency
from kvtier.config.structs import LEAST_QUEUE
from kvtier.facts import RequestFacts
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.policy import Move, PrefetchPolicy
from kvtier.testing.effort import lines
from kvtier.types import BlockKey, WriteMode
from tests.brain.fake_engine import Engine, Shape, stored
from tests.brain.fake_ranks import FULL, Clock, chain


class Sinking(PrefetchPolicy):
    """Takes each prefix down when its request leaves."""

    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        return ()

    def departed(self, request: RequestFacts) -> Sequence[Move]:
        return [Move(tuple(request.keys), self.facts.clock() + 1, up=False)]


@pytest.mark.parametrize("n", [40, 2000])
def test_conversations_that_are_idle_together_go_down_a_few_chunks_a_step(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.brain.fake_engine.ArrivalPolicy", Sinking)
    shape = Shape(slots=2000, capacity=3000, modes=(WriteMode.THROUGH,), watermark=0.0)
    made = Engine(shape._replace(prefetch=True))
    made.ranks.settle()
    made.scan(0, 1)
    prefixes = [chain(f"p{i}", n) for i in range(2000 // n)]
    for keys in prefixes:
        stored(made, keys)
    made.ranks.settle(2000)
    made.clock.now += 2
    left = [2000]
    while left[-1]:
        made.step()
        left.append(made.cache.stats().tiers[0].chunks)
        assert left[-2] - left[-1] <= 600
    assert len(left) >= 4
    made.cache.check()


class Counting(LruPolicy):
    """Counts how many chunks its searches look at."""

    looks = 0
    searches = 0

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        def counted(key: BlockKey) -> bool:
            Counting.looks += 1
            return pinned(key)

        Counting.searches += 1
        return super().victims(n, counted)


def full(slots: int, prefixes: int) -> tuple[TieredCache, list[list[BlockKey]]]:
    """Fill tier 0 with prefixes that waiting requests have."""
    made = TieredCache(groups=[FULL], ranks=1, tier0=Counting, lower=[], clock=Clock())
    made.open(slots, "{}")
    chains = [chain(f"p{i}", slots // prefixes) for i in range(prefixes)]
    for i, keys in enumerate(chains):
        made.arrive(f"p{i}", [keys])
        made.finish(made.plan_store(f"p{i}", keys).plan_id)
        made.depart(f"p{i}")
    for i, keys in enumerate(chains):
        made.arrive(f"waits{i}", [keys])
    Counting.looks = Counting.searches = 0
    return made, chains


def test_a_store_into_a_tier_that_a_long_queue_awaits_does_not_search_all_of_it() -> None:
    made, _ = full(8192, 32)
    made.arrive("new", [chain("new", 4)])
    assert len(made.plan_store("new", chain("new", 4)).keys) == 4
    assert Counting.looks < 64
    made.check()


def test_a_decoded_chunk_is_as_little_work_behind_a_long_prefix() -> None:
    def decode(n: int) -> int:
        made = TieredCache(groups=[FULL], ranks=1, tier0=LruPolicy, lower=[], clock=Clock())
        made.open(6000, "{}")
        requests = [chain(f"r{i}/", n) for i in range(2)]
        for name, keys in zip("ab", requests, strict=True):
            made.arrive(name, [keys])
            made.finish(made.plan_store(name, keys).plan_id)

        def steps() -> None:
            for i in range(10):
                for name, keys in zip("ab", requests, strict=True):
                    new = [BlockKey(b"%s/%d" % (keys[0], i))]
                    made.extend(name, 0, new)
                    made.finish(made.plan_store(name, new).plan_id)
                made.drain()

        work = lines(steps)
        made.check()
        return work

    assert decode(2000) == decode(20)


def test_where_everything_is_pinned_it_is_searched_once() -> None:
    made, chains = full(256, 8)
    for i, keys in enumerate(chains):
        assert made.plan_read(f"waits{i}", keys) is None
    for i in range(5):
        made.arrive(f"new{i}", [chain(f"new{i}", 2)])
        assert not made.plan_store(f"new{i}", chain(f"new{i}", 2)).keys
    assert Counting.searches <= 2
    made.cancel("waits3")
    assert len(made.plan_store("new0", chain("new0", 2)).keys) == 2, "as soon as one is free"
    made.check()


def test_what_the_brain_has_under_way_on_a_tier_fits_into_its_queue() -> None:
    tier = TierSpec(
        name="t", capacity=1, write=WriteMode.IDLE, deadline_s=1, persistent=True, eviction=None
    )
    reads = budgets._MAX_READS + budgets._MAX_AHEAD
    assert reads + tier.max_writes + tier.max_idle_writes < LEAST_QUEUE


@pytest.mark.parametrize("asked", [True, False])
def test_events_are_made_where_somebody_asks_for_them(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = [], plans.CacheEvent

    def event(*args: Any) -> plans.CacheEvent:
        made.append(args)
        return told(*args)

    monkeypatch.setattr(residency, "CacheEvent", event)
    cache = TieredCache(groups=[FULL], ranks=1, tier0=LruPolicy, lower=[], events=asked)
    cache.open(8, "{}")
    for name in ("a", "b"):
        cache.arrive(name, [chain(name, 8)])
        cache.finish(cache.plan_store(name, chain(name, 8)).plan_id)
        cache.depart(name)
    cache.reset("{}")
    assert [event.removed for event in cache.events()] == ([False, True, False, True] * asked)
    assert bool(made) is asked
