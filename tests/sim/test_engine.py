"""The replay with timing: the queueing model by hand, and the brain's promises under it."""

import re
from pathlib import Path

import numpy as np
import pytest

from kvtier.config import Config, load
from kvtier.sim.engine import replay_engine, successors
from kvtier.sim.jobs import tier_jobs
from kvtier.sim.report import render
from kvtier.sim.results import ReplayTable
from kvtier.sim.sweep import sweep
from kvtier.sim.timeline import Timeline
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Row, Trace, TraceBuilder
from tests.sim.rows import TRACES, trace

BLOCK = 100
NO_KNEE = 10**18


def tiers(
    directory: Path, *, lower: bool = True, load_: str = "always", **replay: object
) -> Config:
    medium = {"read": 10**9, "write": 10**12, "latency": "0.001ms"}
    made: list[dict[str, object]] = [{"kind": "dram", "capacity": "1GiB", "medium": medium}]
    if lower:
        made.append(
            {
                "kind": "file",
                "name": "nvme",
                "path": str(directory / "kv"),
                "capacity": "1GiB",
                "write": "on_evict",
                "deadline": "20s",
                "medium": {**medium, "read": 10**8},
            }
        )
    given = {"kv_bytes_per_token": 10_000, "prefill_rate": 100, "prefill_knee": NO_KNEE}
    return load({"load": load_, "tiers": made, "replay": {**given, **replay}})


def test_requests_queue_for_one_engine(tmp_path: Path) -> None:
    """Two prompts of 200 tokens at 100 a second arrive one second apart: 2 s, then 1 s of waiting and 2 s."""
    one = trace([[1, 2], [3, 4]], block=BLOCK)
    done = replay_engine(one, tiers(tmp_path, lower=False), slots=10)
    assert done.ttft_s == pytest.approx([2.0, 3.0])
    assert done.busy_s == pytest.approx(4.0)


def test_a_hit_is_copied_and_the_rest_computed(tmp_path: Path) -> None:
    """Half of 400 tokens hit: 2 MB at 1 GB/s, then 2 s; before it the engine is busy until 4 s."""
    one = trace([[1, 2], [9], [9], [1, 2, 5, 6]], block=BLOCK)
    done = replay_engine(one, tiers(tmp_path, lower=False), slots=10)
    assert done.hits.tolist() == [0, 0, 0, 2]  # the first [9] is not stored yet at 3 s
    assert done.ttft_s[3] == pytest.approx(1 + 0.002 + 2)


def test_a_full_hit_computes_one_token(tmp_path: Path) -> None:
    one = trace([[1, 2], [], [], [1, 2]], block=BLOCK)
    done = replay_engine(one, tiers(tmp_path, lower=False), slots=10)
    assert done.hits[3] == 2
    assert done.ttft_s[3] == pytest.approx(0.01 + 0.002, abs=0.001)


def far(directory: Path, load_: str = "always") -> tuple[Trace, Config]:
    """Evict a first prompt from two slots, then ask for it again."""
    requests = [[1, 2], [3, 4], [5, 6], [], [], [], [], [], [], [1, 2]]
    return trace(requests, block=BLOCK), tiers(directory, load_=load_)


def test_what_left_dram_is_read_back(tmp_path: Path) -> None:
    """2 MB at 100 MB/s and a step each way, then the copy and one token."""
    one, config = far(tmp_path)
    done = replay_engine(one, config, slots=4)
    assert done.hits[-1] == 2
    assert done.stats.tiers[1].hits == 2
    assert done.ttft_s[-1] == pytest.approx(0.02 + 0.01 + 0.002, abs=0.03)
    assert done.stats.tiers[1].write_bytes >= 2 * BLOCK * 10_000


def test_everything_comes_back_when_all_is_over(tmp_path: Path) -> None:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load()
    config = tiers(tmp_path, prefill_rate=50_000, kv_bytes_per_token=1000)
    done = replay_engine(real, config, slots=700)
    stats = done.stats
    assert stats.pinned == stats.reading == stats.quarantined_slots == stats.requests == 0
    assert (done.ttft_s > 0).all()
    assert stats.tiers[1].hits > 0
    assert 0 < done.hits.sum() < len(real.ids)
    assert [sample.at_s for sample in done.occupancy] == sorted(s.at_s for s in done.occupancy)
    again = replay_engine(real, config, slots=700)
    assert np.array_equal(done.ttft_s, again.ttft_s)


def thinking() -> Trace:
    builder = TraceBuilder(BLOCK)
    blocks = np.array([1, 2], np.int64)
    builder.add(Row(0.0, 200, 50, blocks, 0, 0.0))
    builder.add(Row(9.0, 200, 50, blocks, 0, 5.0))
    builder.add(Row(12.0, 200, 50, blocks, 0, None))
    return builder.build()


def test_a_session_thinks_after_the_answer(tmp_path: Path) -> None:
    """2 s of prefill, 1 s of decoding, 5 s of thinking; the third comes 3 s after the second."""
    one = thinking()
    assert successors(one) == {0: 1, 1: 2}
    done = replay_engine(one, tiers(tmp_path, lower=False), slots=10)
    assert done.ended_s == pytest.approx(2 + 1 + 5 + 3 + 0.012 + 1, abs=0.1)


def test_jobs_become_rows_and_a_report(tmp_path: Path) -> None:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load()
    config = tiers(tmp_path, prefill_rate=50_000, kv_bytes_per_token=1000)
    jobs = tier_jobs(config, [], [300_000, 400_000])
    rows = sweep(real, jobs, workers=1, done=lambda: None)
    assert [row.policy for row in rows] == ["lru", "lru", "belady", "belady", "infinite"]
    for row in rows[:2]:
        assert row.hit_blocks <= rows[2].hit_blocks
        assert row.ttft_s is not None
        assert row.ttft_s.p50 <= row.ttft_s.p95 <= row.ttft_s.p99
        assert row.write_amplification is not None
        amplification = row.bytes["nvme_in"] / row.bytes["dram_in"]
        assert row.write_amplification["nvme"] == pytest.approx(amplification)
    table = ReplayTable(
        trace="<a> & b",
        requests=len(real),
        block_references=len(real.ids),
        block_tokens=512,
        skipped_rows=0,
        assumptions={"seed": 0},
        rows=rows,
    )
    page = render(table)
    assert "&lt;a&gt; &amp; b" in page
    assert re.search(r"<h1>With 400k tokens lru saves \d+\.\d% of the prefill", page)
    assert page.count("<figure") == 2 + 3 + 2


def test_time_never_goes_back() -> None:
    time = Timeline()
    seen: list[float] = []
    time.at(5.0, lambda: time.at(1.0, lambda: seen.append(time.now)))
    while time.step():
        pass
    assert seen == [5.0]
    assert not time.pending
