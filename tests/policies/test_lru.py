from collections import OrderedDict
from collections.abc import Callable

import pytest

from kvtier.policies.eviction.lru import LruPolicy
from kvtier.policy import EvictionPolicy
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

    def test_a_prefix_used_tail_first_costs_one_move_per_chunk(self) -> None:
        policy = self.make()
        keys = chain("a", 500)
        insert_chain(policy, keys)
        moves = 0

        class Counting(OrderedDict):  # type: ignore[type-arg] # a probe
            def move_to_end(self, key: object, last: bool = True) -> None:
                nonlocal moves
                moves += 1
                super().move_to_end(key, last)

        policy._parents = Counting(policy._parents)
        touch_chain(policy, keys)
        policy.victims(1, never)
        assert moves == 500
