"""Block-level replay: the brain itself, against a naive LRU written down here."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.config import Plugin
from kvtier.errors import ConfigError
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.sim.jobs import block_jobs
from kvtier.sim.results import ReplayRow
from kvtier.sim.setting import Prefill, worth
from kvtier.sim.sweep import sweep
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Trace
from tests.sim.rows import TRACES, forests, trace

LRU = Plugin(kind="lru")


def naive_lru(one: Trace, slots: int) -> list[int]:
    """Hit a prefix; then use it all, tail first; a request longer than the cache keeps its head."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = []
    for i in range(len(one)):
        blocks = one.blocks(i).tolist()
        n = next((j for j, block in enumerate(blocks) if block not in held), len(blocks))
        hits.append(n)
        kept = blocks[:slots]
        for block in reversed(kept):
            held.pop(block, None)
        while len(held) + len(kept) > slots:
            held.popitem(last=False)
        held.update(dict.fromkeys(reversed(kept)))
    return hits


@settings(max_examples=100, deadline=None)
@given(forests, st.integers(1, 8))
def test_lru_is_lru(one: Trace, slots: int) -> None:
    done = replay_blocks(one, one_tier(LRU), slots=slots, block_nbytes=4096)
    assert done.hits.tolist() == naive_lru(one, slots)


def test_lru_on_real_traffic() -> None:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load()
    done = replay_blocks(real, one_tier(LRU), slots=1000, block_nbytes=4096)
    assert done.hits.tolist() == naive_lru(real, 1000)
    assert done.stats.loads == done.hits.sum() == done.stats.tiers[0].hits
    assert done.stats.stores - done.stats.evictions == 1000 - done.stats.free_slots


def test_no_room_for_one_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="no room"):
        replay_blocks(trace([[1]]), one_tier(LRU), slots=0, block_nbytes=4096)


def test_what_hits_are_worth() -> None:
    """Half of the last block is not in the prompt; attention makes the tail dearer than the head."""
    one = trace([[1, 2], [1, 2]])
    one.prompt_tokens[:] = 24
    value = worth(one, np.array([0, 2]), Prefill(rate=10, knee=12))
    assert (value.hit_blocks, value.hit_tokens) == (0.5, 0.5)
    assert value.saved_prefill_s == pytest.approx((24 + 24 * 24 / 24) / 10)
    assert value.saved_prefill == 0.5
    half = Prefill(rate=10, knee=12).seconds(12, 24)
    assert half == pytest.approx(value.saved_prefill_s - Prefill(rate=10, knee=12).seconds(0, 12))


def rows(workers: int) -> list[ReplayRow]:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load()
    jobs = block_jobs([LRU], [500_000, 10**9], nbytes_per_token=1, prefill=Prefill())
    ticks: list[None] = []
    made = sweep(real, jobs, workers=workers, done=lambda: ticks.append(None))
    assert len(ticks) == len(jobs)
    return made


def test_a_sweep_over_processes_is_the_sweep_in_one() -> None:
    one, two = rows(1), rows(2)
    assert [row.hit_blocks for row in one] == [row.hit_blocks for row in two]
    assert [(row.policy, row.capacity_tokens) for row in two] == [
        ("lru", 500_000),
        ("lru", 10**9),
        ("belady", 500_000),
        ("belady", 10**9),
        ("infinite", None),
    ]
    small, large, best_small, best, endless = (row.hit_blocks for row in two)
    assert 0 < small < best_small < best == large == endless
    references = len(TraceFile(TRACES / "mooncake_800.jsonl.gz").load().ids)
    assert two[0].bytes["dram_out"] == round(small * references) * 512
