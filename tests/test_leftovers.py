"""What is forgotten at once is freed bit by bit."""

import sys
from collections import OrderedDict, deque

import pytest

from kvtier.brain.index import Index
from kvtier.leftovers import Leftovers
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.registry import EVICTION
from kvtier.testing.policies import chain, insert_chain, never
from kvtier.types import BlockKey
from tests.policies.golden import make


def held(keys: list[BlockKey]) -> int:
    """Count the references to keys."""
    return sum(map(sys.getrefcount, keys))


def test_containers_of_every_kind_go_a_few_entries_at_a_time() -> None:
    leftovers, keys = Leftovers(), chain("k", 1000)
    nothing = held(keys)
    leftovers.leave(list(keys), deque(keys), dict.fromkeys(keys), OrderedDict.fromkeys(keys))
    leftovers.leave([], {})
    before = held(keys)
    while leftovers:
        leftovers.free(10)
        assert before - 20 <= held(keys) <= before  # an ordered dict holds each twice
        before = held(keys)
    assert held(keys) == nothing


@pytest.mark.parametrize("name", sorted(EVICTION))
def test_a_policy_that_is_cleared_frees_nothing_then_and_all_as_new_chunks_come(name: str) -> None:
    policy = make(name)
    prefixes = [chain(f"p{i}/", 4) for i in range(1000)]
    keys = [key for prefix in prefixes for key in prefix]
    nothing = held(keys)
    for prefix in prefixes:
        insert_chain(policy, prefix)
    policy.victims(8, never)
    before = held(keys)
    policy.clear()
    assert held(keys) - nothing > 0.9 * (before - nothing)
    for i in range(3000):
        insert_chain(policy, chain(f"new{i}/", 2))
    assert held(keys) == nothing
    assert not isinstance(policy, PrefixPolicy) or len(policy._rows) == 6000


def test_an_index_that_is_cleared_is_freed_by_its_tidying() -> None:
    index, keys = Index(1), chain("k", 5000)
    nothing = held(keys)
    for i in range(1, len(keys)):
        index.add(keys[i], keys[i - 1], 16)
    before = held(keys)
    index.clear()
    assert held(keys) == before
    assert len(index) == 0
    index.tidy(100)
    assert held(keys) >= before - 100
    index.tidy(20_000)
    assert held(keys) == nothing
