"""The compiled LRU answers as the brain does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.config import Plugin
from kvtier.sim import lru
from kvtier.sim.belady import dense
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Trace
from tests.sim.rows import TRACES, forests

LRU = Plugin(kind="lru")


@settings(max_examples=200, deadline=None)
@given(forests, st.integers(1, 8))
def test_its_loop_is_the_brain(one: Trace, slots: int) -> None:
    done = replay_blocks(one, one_tier(LRU), slots=slots, block_nbytes=1)
    hits = np.zeros(len(one), np.int64)
    ids, n = dense(one.ids)
    stores = lru._replay(ids, one.starts, n, slots, hits, lru._unlink, lru._append)
    assert (hits.tolist(), stores) == (done.hits.tolist(), done.stats.stores)


@pytest.mark.parametrize("slots", [100, 1000, 100_000])
def test_compiled_on_real_traffic(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load()
    brain = lru.replay_one_tier(real, LRU, slots=slots)
    monkeypatch.setattr(lru, "_LEAST", 0)
    monkeypatch.setattr(lru, "replay_blocks", None)
    compiled = lru.replay_one_tier(real, LRU, slots=slots)
    assert compiled.hits.tolist() == brain.hits.tolist()
    assert compiled.stores == brain.stores


def test_without_numba_the_brain_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load().first(50)
    monkeypatch.setattr(lru, "_LEAST", 0)
    monkeypatch.setattr(lru, "find_spec", lambda _: None)
    monkeypatch.setattr(lru, "replay_lru", None)
    assert lru.replay_one_tier(real, LRU, slots=100).stores
