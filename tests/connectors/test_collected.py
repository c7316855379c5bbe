"""The stores of a step reach the transfer engine at once, and whoever asks for one is told of one that has."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.transfer.engine import ChunkCopy, Moved, Transfer
from tests.connectors import halves


class Done(Transfer):
    def done(self) -> bool:
        return True

    def result(self) -> Moved:
        return Moved(1, 1.0)


class Engine:
    """Takes several stores at once, and fails at one of a slot."""

    beside = False

    def __init__(self, bad_slot: int = -1) -> None:
        self.given: list[list[int]] = []
        self.bad_slot = bad_slot

    def offload_each(self, transfers: Sequence[Sequence[ChunkCopy]]) -> Iterator[Transfer]:
        self.given.append([])
        for copies in transfers:
            if copies[0].slot == self.bad_slot:
                raise RuntimeError("no thread")
            self.given[-1].append(copies[0].slot)
            yield Done()

    def launched(self) -> None:
        pass


def rig(bad_slot: int = -1) -> tuple[KVTierWorker, Engine]:
    engine = Engine(bad_slot)
    worker = halves.worker(engine)
    for job in range(3):
        submit(worker, job)
    assert not engine.given
    return worker, engine


def submit(worker: KVTierWorker, job: int) -> None:
    device = GPULoadStoreSpec([10 + job], group_sizes=[1], block_indices=[0])
    assert worker.submit_store(job, device, SlotSpec(1, ((job,),)))


def test_they_are_given_when_the_pass_is_launched() -> None:
    worker, engine = rig()
    worker.launched()
    worker.launched()
    assert engine.given == [[0, 1, 2]]
    assert [each.job_id for each in worker.get_finished()] == [0, 1, 2]
    assert not worker.take_failed()


@pytest.mark.parametrize("ask", [lambda of: of.wait({1}), lambda of: of.get_finished()])
def test_who_waits_for_one_or_collects_gives_them_first(ask: Any) -> None:
    worker, engine = rig()
    ask(worker)
    assert engine.given == [[0, 1, 2]]


def test_one_that_cannot_be_started_fails_with_those_behind_it() -> None:
    worker, engine = rig(bad_slot=1)
    assert len(worker.get_finished()) == 3
    assert engine.given == [[0]]
    assert worker.take_failed() == {1: {0}, 2: {0}}
    assert "no thread" in worker.guard.broken


def test_with_kvtier_off_they_fail() -> None:
    worker, engine = rig()
    worker.guard.trip("a test")
    assert len(worker.get_finished()) == 3
    assert not engine.given
    assert worker.take_failed() == {0: {0}, 1: {0}, 2: {0}}
