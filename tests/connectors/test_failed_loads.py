"""A load that a reset failed is said to have failed when vLLM collects it, however long its copies take."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.copy_job import CopyJob, CopyPart
from kvtier.connectors.vllm.messages import KVTierMetadata
from kvtier.connectors.vllm.rank import Rank
from tests.connectors import halves
from tests.connectors.test_copy_job import Copy


def step(rank: Rank, *, reset: bool = False) -> set[str]:
    """Do what vLLM does in a step with two KV-cache groups; return the requests that must start again."""
    empty = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=set())
    empty.fail_loads = reset
    rank.before(empty)
    before = dict(rank.loads)
    received = {rank.loads.pop(result.job_id) for result in rank.worker.get_finished()}
    return rank.failed_requests(before, received)


def test_a_load_that_outlasts_the_step_of_a_reset_has_failed_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = halves.worker(SimpleNamespace(launched=lambda: None))
    slow, quick = Copy(10), Copy(10)
    for job_id, copy in ((1, slow), (2, quick)):
        worker._jobs[job_id] = CopyJob(1, (3 + job_id,), parts=[CopyPart(copy, [0])])
    monkeypatch.setattr(Rank, "worker", worker)
    rank = halves.rank(worker)
    rank._by_blocks = False
    rank.loads.update({1: "slow", 2: "quick"})
    quick.over = True
    assert step(rank, reset=True) == {"quick"}
    assert slow.stopped
    assert step(rank) == set()
    slow.over = True
    assert step(rank) == {"slow"}
    worker._jobs[1] = CopyJob(1, (4,), parts=[CopyPart(quick, [0])])
    rank.loads[1] = "next"
    assert step(rank) == set(), "the number means another job by now"
