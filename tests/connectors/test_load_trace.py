"""A load's times are said once, when a step computes its request, and nobody pays for them where nobody listens."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm import load_trace
from kvtier.connectors.vllm.copy_job import Copied
from kvtier.connectors.vllm.load_trace import CopyTimes, CopyTrace, LoadTrace
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.transfer.engine import Moved

JOB: Any = SimpleNamespace(req_id="r")


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged at debug level."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = load_trace.logger, load_trace.logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def computes(*requests: str) -> Any:
    return SimpleNamespace(num_scheduled_tokens=dict.fromkeys(requests, 1))


def test_the_slowest_rank_says_where_the_time_went(said: list[str]) -> None:
    times = iter([1.0, 1.001, 1.03, 1.03, 1.04, 1.05])
    trace = LoadTrace(lambda: next(times))
    trace.hit("r")
    trace.step(KVTierMetadata({7: JOB}, {}, None), computes())
    slow = CopyTimes(7, 4096, 0.01, 1.002, 1.003, 1.004, 1.02, 1.025)
    quick = slow._replace(copied=1.01, reported=1.011)
    trace.hear(KVTierWorkerMetadata(copied=[slow, quick]))
    for _ in range(2):
        trace.step(KVTierMetadata({}, {}, None), computes("r", "other"))
    (line,) = said
    assert line == (
        "kvtier: load of r: job=7 nbytes=4096 at=1000.000 worked=10.000 ordered=1.000 announced=2.000 "
        "submitted=3.000 started=4.000 copied=20.000 reported=25.000 seen=30.000 scheduled=40.000"
    )


def test_of_a_load_in_several_copies_each_is_said(said: list[str]) -> None:
    trace = CopyTrace()
    trace.submitted(7)
    parts = [Copied([0, 2], 1.0, 1.001, 1.01), Copied([1], 1.004, 1.01, 1.02)]
    trace.reported(7, Moved(4096, 0.02), parts)
    (times,) = trace.take()
    assert (times.started, times.copied) == (1.001, 1.02)
    assert said == [
        "kvtier: copy of job=7 chunks=0,2 landed=1000.000 started=1001.000 copied=1010.000",
        "kvtier: copy of job=7 chunks=1 landed=1004.000 started=1010.000 copied=1020.000",
    ]


@pytest.mark.usefixtures("said")
def test_a_rank_tells_each_load_once_and_no_store() -> None:
    trace = CopyTrace()
    trace.announced()
    trace.submitted(7)
    for job in (7, 7, 8):
        at = trace._jobs[7][1] if trace._jobs else 0.0
        trace.reported(job, Moved(4096, 0.5, 0.1, 0.2), [Copied([0], at, at + 0.1, at + 0.5)])
    (told,) = trace.take()
    assert (told.job, told.nbytes, told.worked) == (7, 4096, 0.2)
    assert told.copied - told.started == pytest.approx(0.4)
    assert trace.take() == []


@pytest.mark.usefixtures("said")
def test_loads_that_are_never_computed_are_forgotten() -> None:
    trace = LoadTrace()
    for job in range(3000):
        trace.step(KVTierMetadata({job: JOB}, {}, None), computes())
    assert len(trace._loads) == load_trace._FOLLOWED


def test_nothing_is_noted_where_nobody_listens() -> None:
    rank, core = CopyTrace(), LoadTrace()
    rank.submitted(7)
    rank.reported(7, Moved(4096, 0.5), [Copied([0], 0.0, 0.0, 0.5)])
    core.hit("r")
    core.step(KVTierMetadata({7: JOB}, {}, None), computes("r"))
    assert (rank.take(), core._hits, core._loads) == ([], {}, {})
