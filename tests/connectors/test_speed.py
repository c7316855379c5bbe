"""A step's time is its own, also where the next is ordered before its output, and where others have nothing to say."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.speed import Speed
from tests.connectors import halves
from tests.connectors.test_overwrites import Engine, output


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float) -> None:
        self.now += seconds


def test_steps_one_after_the_other() -> None:
    clock = Clock()
    speed = Speed(clock)
    step = speed.begin(1000)
    clock.after(2.0)
    assert speed.end(step) == (1000, 2.0)
    speed.output()
    clock.after(5.0)  # nobody asked for anything
    step = speed.begin(500)
    clock.after(1.0)
    assert speed.end(step) == (500, 1.0)
    assert speed.end(step) is None


def test_a_step_that_is_ordered_early_begins_with_the_end_of_the_one_before() -> None:
    clock = Clock()
    speed = Speed(clock)
    first, decode, last = speed.begin(1000), speed.begin(1), speed.begin(200)
    assert decode == 0
    clock.after(2.0)
    assert speed.end(first) == (1000, 2.0)
    speed.output()
    clock.after(0.1)
    assert speed.end(decode) is None
    speed.output()
    clock.after(0.5)
    ended = speed.end(last)
    assert ended is not None
    assert ended[1] == pytest.approx(0.5)


def test_steps_that_never_end_are_forgotten() -> None:
    speed = Speed(Clock())
    first = speed.begin(64)
    for _ in range(100):
        last = speed.begin(64)
    assert len(speed._steps) <= 8
    assert speed.end(first) is None
    assert speed.end(last) is not None


def test_a_rank_with_nothing_else_to_say_answers_a_step_that_is_timed() -> None:
    """Without its answer nobody would know how fast the engine is: one request at a time has nothing to store."""
    side, worker = halves.scheduling(), halves.worker(Engine())
    worker.io, worker.placed = None, list  # type: ignore[method-assign]
    rank = halves.rank(worker)
    for tokens, known in ((10, False), (1000, True)):
        meta = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=None)
        step: Any = output()
        step.total_num_scheduled_tokens = tokens
        side.step(step, meta)
        rank.before(meta)
        told = rank.report(None)
        assert (told is not None) == known
        if told is not None:
            side.hear(told)
        assert side.brain.view.knows_speed == known
        assert rank.report(None) is None


def test_all_ranks_answer_as_one() -> None:
    ranks = [KVTierWorkerMetadata(timed=timed) for timed in (7, 7)]
    assert ranks[0].aggregate(ranks[1]).timed == 7
