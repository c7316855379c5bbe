"""Synthetic traces: like their source, seeded, streamed."""

import tracemalloc
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from kvtier.sim.statistics import describe
from kvtier.trace.files import TraceFile
from kvtier.trace.sessions import Drawn, drawn, lineages, templates
from kvtier.trace.synth import resampled, stream, write
from kvtier.trace.trace import Trace, TraceBuilder
from tests.sim.rows import TRACES, trace

MODEL = Drawn(session_rate=5.0, turns=3.0)


def mooncake() -> Trace:
    return TraceFile(TRACES / "mooncake_800.jsonl.gz").load()


def built(trace_like: Trace, requests: int, seed: int = 1) -> Trace:
    builder = TraceBuilder(trace_like.block_tokens)
    for row in stream(resampled(templates(trace_like), seed), requests):
        builder.add(row)
    return builder.build()


def test_a_request_continues_whom_it_covers() -> None:
    """The second continues the first; the third shares its head only; the fourth continues the second."""
    one = trace([[1, 2, 3], [1, 2, 3, 4, 5], [1, 6, 7], [1, 2, 3, 4, 9, 10]])
    assert lineages(one).tolist() == [0, 0, 1, 0]


def test_a_conversation_is_continued_from_its_newest_prompt_only() -> None:
    one = trace([[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 8]])
    assert lineages(one).tolist() == [0, 0, 1]


def test_a_resampled_trace_is_like_its_source() -> None:
    source = mooncake()
    sizes = [300_000, 1_000_000]
    real, made = describe(source, sizes), describe(built(source, 800), sizes)
    for size in sizes:
        assert made.lru_hits[size] == pytest.approx(real.lru_hits[size], abs=0.05)
    assert made.infinite_hit == pytest.approx(real.infinite_hit, abs=0.06)
    for mine, theirs in zip(made.distributions, real.distributions, strict=True):
        if mine.name in ("prompt", "answer", "turns"):
            assert mine.mean == pytest.approx(theirs.mean, rel=0.25), mine.name


def test_private_blocks_are_new_in_each_copy_and_shared_ones_are_not() -> None:
    source = trace([[1, 2, 3], [1, 2, 3, 4], [1, 7, 8]])
    made = built(source, 30)
    assert made.distinct > source.distinct
    heads = {int(made.blocks(i)[0]) for i in range(30)}
    assert heads == {1}


def test_a_seed_is_a_trace(tmp_path: Path) -> None:
    files: list[Trace] = []
    for seed, suffix in ((3, "jsonl"), (3, "jsonl.gz"), (4, "jsonl")):
        path = tmp_path / f"{len(files)}.{suffix}"
        assert write(path, stream(drawn(seed, 512, MODEL), 200), 512) == 200
        files.append(TraceFile(path).load())
    assert np.array_equal(files[0].ids, files[1].ids)
    assert not np.array_equal(files[0].prompt_tokens, files[2].prompt_tokens)
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_drawn_sessions_follow_their_distributions() -> None:
    some = list(islice(drawn(1, 64, MODEL), 2000))
    turns = [len(one.turns) for one in some]
    assert np.mean(turns) == pytest.approx(MODEL.turns, rel=0.1)
    gaps = [b.start_s - a.start_s for a, b in pairwise(some)]
    assert np.mean(gaps) == pytest.approx(1 / MODEL.session_rate, rel=0.1)
    thinks = [turn.think_s for one in some for turn in one.turns[1:]]
    assert np.median(thinks) == pytest.approx(MODEL.think_s[0], rel=0.1)
    for one in some[:50]:
        for before, after in pairwise(one.turns):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert after.private[: len(before.private)].tolist() == before.private.tolist()


def test_arrivals_are_in_order_and_sessions_keep_their_gaps() -> None:
    made = built(mooncake(), 500)
    assert (np.diff(made.at_s) >= 0).all()
    assert (made.at_s >= 0).all()


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    peaks = []
    for n in (1000, 4000):
        tracemalloc.start()
        write(tmp_path / "t", stream(drawn(1, 512, MODEL._replace(think_s=(1.0, 0.1))), n), 512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
