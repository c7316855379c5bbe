"""The ceilings: against brute force on tiny traces, and never below any policy."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import registry
from kvtier.config import Plugin
from kvtier.sim.belady import belady, infinite
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Trace
from tests.sim.rows import TRACES, forests, trace


def best(requests: list[list[int]], capacity: int) -> int:
    """Try everything that a cache could hold after each request, prefix-closed or not."""
    reached: dict[frozenset[int], int] = {frozenset(): 0}
    for blocks in requests:
        after: dict[frozenset[int], int] = {}
        for held, hits in reached.items():
            n = next((i for i, block in enumerate(blocks) if block not in held), len(blocks))
            known = held | set(blocks)
            for size in range(min(capacity, len(known)) + 1):
                for kept in combinations(sorted(known), size):
                    state = frozenset(kept)
                    after[state] = max(after.get(state, 0), hits + n)
        reached = after
    return max(reached.values())


@settings(max_examples=60, deadline=None)
@given(forests, st.integers(0, 3))
def test_belady_hits_what_brute_force_can(one: Trace, capacity: int) -> None:
    requests = [one.blocks(i).tolist() for i in range(len(one))]
    assert belady(one, capacity).sum() == best(requests, capacity)


@settings(max_examples=60, deadline=None)
@given(forests, st.integers(1, 6), st.sampled_from(sorted(registry.EVICTION)))
def test_no_policy_is_above_belady(one: Trace, slots: int, policy: str) -> None:
    done = replay_blocks(one, one_tier(Plugin(kind=policy)), slots=slots, block_nbytes=4096)
    assert done.hits.sum() <= belady(one, slots).sum() <= infinite(one).sum()


@given(forests)
def test_an_infinite_cache_is_a_belady_with_room_for_all(one: Trace) -> None:
    assert belady(one, one.distinct).tolist() == infinite(one).tolist()


def test_heads_go_after_their_tails() -> None:
    """Both are used next by the same request: with one slot the head is kept."""
    assert belady(trace([[1, 2], [1, 2]]), 1).tolist() == [0, 1]


@pytest.mark.parametrize("policy", sorted(registry.EVICTION))
def test_on_real_traffic_no_policy_is_above_belady(policy: str) -> None:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load().first(400)
    done = replay_blocks(real, one_tier(Plugin(kind=policy)), slots=300, block_nbytes=4096)
    assert 0 < done.hits.sum() <= belady(real, 300).sum()
