from collections import OrderedDict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.policy import EvictionPolicy
from kvtier.testing.effort import lines
from kvtier.testing.policies import (
    FixedFacts,
    PolicyContract,
    chain,
    insert_chain,
    never,
    touch_chain,
)
from kvtier.types import BlockKey
from tests.policies.conversations import misses
from tests.policies.golden import SIZES, golden

GOLDEN = golden()["lru"]


class Oracle(EvictionPolicy):
    """LRU said naively: a list, searched and sorted each time."""

    def __init__(self) -> None:
        super().__init__(FixedFacts())
        self.keys: list[BlockKey] = []
        self.parents: dict[BlockKey, BlockKey | None] = {}

    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        self.parents[key] = parent
        self.touch(key)

    def touch(self, key: BlockKey | None) -> None:
        while key in self.parents:
            if key in self.keys:
                self.keys.remove(key)
            self.keys.append(key)
            key = self.parents[key]

    def remove(self, key: BlockKey) -> None:
        self.keys.remove(key)
        del self.parents[key]

    def clear(self) -> None:
        self.keys.clear()
        self.parents.clear()

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        kept: set[BlockKey | None] = set()
        for key in self.keys:
            if pinned(key):
                at: BlockKey | None = key
                while at in self.parents:
                    kept.add(at)
                    at = self.parents[at]
        return [key for key in self.keys if key not in kept][:n]


class TestLru(PolicyContract):
    def make(self) -> LruPolicy:
        return LruPolicy(FixedFacts())

    @pytest.mark.parametrize("capacity", SIZES)
    def test_golden_misses(self, capacity: int) -> None:
        counted = misses(self.make(), capacity), misses(Oracle(), capacity)
        assert counted == (GOLDEN[str(capacity)],) * 2

    def test_the_least_recently_used_prefix_goes_first(self) -> None:
        policy = self.make()
        a, b, c = chain("a", 2), chain("b", 2), chain("c", 2)
        for keys in (a, b, c):
            insert_chain(policy, keys)
        touch_chain(policy, a)
        assert policy.victims(6, never) == [b[1], b[0], c[1], c[0], a[1], a[0]]

    def test_a_shared_head_is_as_young_as_its_youngest_tail(self) -> None:
        policy = self.make()
        head, old, young = chain("h", 2), chain("o", 1), chain("y", 1)
        insert_chain(policy, head)
        policy.insert(old[0], head[1])
        policy.insert(young[0], head[1])
        policy.touch(old[0])
        assert policy.victims(4, never) == [young[0], old[0], head[1], head[0]]

    def test_inserting_again_a_parent_that_is_owed_a_use_leaves_no_hole(self) -> None:
        policy = self.make()
        head, tail = chain("a", 2)
        policy.insert(head, None)
        policy.insert(tail, head)
        policy.insert(head, None)
        assert policy.victims(1, never) == [tail]

    def test_a_request_that_waits_has_used_what_it_will_ask_for(self) -> None:
        policy = self.make()
        waited, other, window = chain("a", 4), chain("b", 2), chain("w", 3)
        insert_chain(policy, waited)
        for key in window:
            policy.insert(key, None)
        insert_chain(policy, other)
        groups = GroupKeys([*waited[:3], BlockKey(b"new")], 16, None), GroupKeys(window, 16, 2)
        policy.arrived(RequestFacts("r", groups, 0.0, RequestHints()))
        oldest = [waited[3], window[0], other[1], other[0]]
        assert policy.victims(9, never) == [*oldest, *waited[2::-1], window[2], window[1]]


def deep(n: int) -> tuple[LruPolicy, list[BlockKey], list[BlockKey]]:
    """Make a policy with two prefixes of `n` chunks."""
    policy = LruPolicy(FixedFacts())
    one, two = chain("one", n), chain("two", n)
    insert_chain(policy, one)
    insert_chain(policy, two)
    return policy, one, two


def alternate(n: int) -> int:
    """Count the work of chunks that come one by one behind two prefixes of `n`, in turn."""
    policy, one, two = deep(n)

    def decode() -> None:
        for i in range(20):
            for keys in (one, two):
                keys.append(BlockKey(keys[0] + b"/%d" % i))
                policy.insert(keys[-1], keys[-2])
            policy.victims(1, never)

    work = lines(decode)
    assert policy.victims(9999, never) == [*reversed(one), *reversed(two)]
    return work


def test_a_chunk_that_comes_alone_costs_no_more_behind_a_long_prefix() -> None:
    assert alternate(2000) == alternate(20)


def write(n: int) -> int:
    """Count the work of records of two prefixes that come head first, in turn."""
    policy = LruPolicy(FixedFacts())

    def insert() -> None:
        for pair in zip(chain("a", n), chain("b", n), strict=True):
            for key, before in zip(pair, last, strict=True):
                policy.insert(key, before)
            last[:] = pair

    last: list[BlockKey | None] = [None, None]
    return lines(insert)


def test_records_that_come_head_first_cost_the_same_each() -> None:
    assert write(1000) < 11 * write(100)


def test_a_prefix_used_tail_first_is_moved_once() -> None:
    policy, one, _ = deep(500)
    moves = 0

    class Counting(OrderedDict):  # type: ignore[type-arg] # a probe
        def move_to_end(self, key: object, last: bool = True) -> None:
            nonlocal moves
            moves += 1
            super().move_to_end(key, last)

    policy.victims(1, never)
    policy._order = Counting(policy._order)
    touch_chain(policy, one)
    policy.victims(1, never)
    assert moves == 1


def test_a_search_passes_a_spared_prefix_in_one_look() -> None:
    policy, one, two = deep(500)
    looks = 0

    def pinned(key: BlockKey) -> bool:
        nonlocal looks
        looks += 1
        return key in one

    assert policy.victims(3, pinned) == two[:-4:-1]
    assert looks == 4


# Ops of a random history: a request uses the head of a tree's path and stores the rest, or decodes on, or all is asked for.
SERVE = st.tuples(st.just("serve"), st.text("ab", min_size=1, max_size=9), st.booleans())
DECODE = st.tuples(st.just("decode"), st.integers(0, 30))
EVICT = st.tuples(
    st.just("evict"), st.integers(0, 9), st.frozensets(st.integers(0, 40), max_size=3)
)


class Both:
    """LRU and the oracle, side by side."""

    def __init__(self) -> None:
        self.oracle, self.lru = Oracle(), LruPolicy(FixedFacts())
        self.leaves = 0

    def serve(self, path: str, tail_first: bool) -> None:
        """Use what is here of a path, and insert the rest."""
        keys = [BlockKey(path[:i].encode()) for i in range(1, len(path) + 1)]
        here = [key for key in keys if key in self.oracle.parents]
        rest = [(k, p) for k, p in zip(keys, [None, *keys], strict=False) if k not in here]
        for policy in (self.oracle, self.lru):
            touch_chain(policy, here)
            for key, parent in reversed(rest) if tail_first else rest:
                policy.insert(key, parent)

    def decode(self, i: int) -> None:
        """Insert one chunk behind any."""
        if self.oracle.keys:
            parent = self.oracle.keys[i % len(self.oracle.keys)]
            self.leaves += 1
            for policy in (self.oracle, self.lru):
                policy.insert(BlockKey(b"%s.%d" % (parent, self.leaves)), parent)

    def evict(self, n: int, pins: frozenset[int]) -> None:
        """Let victims go."""
        keys = sorted(self.oracle.keys)
        pinned = {keys[i % len(keys)] for i in pins} if keys else set()
        victims = self.oracle.victims(n, pinned.__contains__)
        assert self.lru.victims(n, pinned.__contains__) == victims
        for key in victims:
            self.oracle.remove(key)
            self.lru.remove(key)


@settings(max_examples=300)
@given(steps=st.lists(st.one_of(SERVE, SERVE, DECODE, EVICT), max_size=40))
def test_it_is_the_oracle(steps: list[tuple[object, ...]]) -> None:
    both = Both()
    for step, *arguments in steps:
        getattr(both, str(step))(*arguments)
    both.evict(999, frozenset())
