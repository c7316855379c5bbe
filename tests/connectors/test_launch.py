"""The copies of a step are ordered before its forward pass, although vLLM submits them behind its launch."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import TransferJob
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import (
    OffloadingConnectorWorker,
)
from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.messages import KVTierMetadata, SlotSpec
from kvtier.memory.arena import Arena
from kvtier.transfer.cpu import CpuTransferEngine
from kvtier.transfer.engine import ChunkCopy, Moved, Transfer
from kvtier.transfer.page_map import Work
from tests.connectors import halves
from tests.transfer.contract import pages

META = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=None)


class Copy(Transfer):
    """A transfer that is over once the caller has rested so often."""

    def __init__(self, rests: int) -> None:
        self.rests = rests

    def done(self) -> bool:
        return self.rests <= 0

    def rest(self, seconds: float) -> None:
        self.rests -= 1

    def result(self) -> Moved:
        return Moved(4096, 0.001)


class Engine:
    def __init__(self, calls: list[str], failing: bool, rests: int = 0) -> None:
        self.calls, self.failing = calls, failing
        self.beside, self.rests = False, rests

    def onload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        self.calls.append(f"copy {[copy.slot for copy in copies]}")
        return Copy(self.rests)

    def launching(self) -> None:
        if self.failing:
            raise RuntimeError("the device is gone")
        self.calls.append("launching")

    def launched(self) -> None:
        self.calls.append("launched")


def connector(calls: list[str], failing: bool = False) -> KVTierConnector:
    """The worker's side of one whose vLLM half only says what it is asked for."""
    made = object.__new__(KVTierConnector)
    made._connector_metadata = None
    made._rank = halves.rank(halves.worker(Engine(calls, failing)))
    vllm: Any = SimpleNamespace(
        handle_preemptions=lambda meta: calls.append("flush"),
        start_kv_transfers=lambda meta: calls.append("submit"),
    )
    made.connector_worker = vllm
    return made


def step(of: KVTierConnector) -> None:
    """What both of vLLM's model runners do."""
    context: Any = None
    of.handle_preemptions(META)
    of.bind_connector_metadata(META)
    of.start_load_kv(context)


def test_what_is_flushed_is_ordered_by_itself_and_what_is_submitted_before_the_pass() -> None:
    calls: list[str] = []
    step(connector(calls))
    assert calls == ["launched", "flush", "launching", "submit", "launched"]


def test_a_device_that_fails_then_turns_kvtier_off_and_the_engine_goes_on() -> None:
    calls: list[str] = []
    made = connector(calls, failing=True)
    step(made)
    assert "the device is gone" in made.rank.guard.broken
    assert calls == ["launched", "flush", "submit"]


def load_step(slot: int, *, idle: bool = False) -> KVTierMetadata:
    """A step that loads one chunk."""
    job = TransferJob("a request", SlotSpec(1, ((slot,),)), GPULoadStoreSpec([7], [1], [0]))
    return KVTierMetadata({slot: job}, {}, None, idle=idle)


def loading(calls: list[str], *, beside: bool, rests: int = 0) -> KVTierConnector:
    """A connector with vLLM's own order of a step's submissions."""
    made = connector(calls)
    engine = Engine(calls, False, rests)
    engine.beside = beside
    made.rank.worker._engine = engine  # type: ignore[assignment]

    def submit(meta: KVTierMetadata) -> None:
        for job_id, job in meta.load_jobs.items():
            assert isinstance(job.dst_spec, GPULoadStoreSpec)
            made.rank.worker.submit_load(job_id, job.src_spec, job.dst_spec)

    made.connector_worker.start_kv_transfers = submit
    return made


def ended(of: KVTierConnector) -> list[int]:
    return [result.job_id for result in of.rank.worker.get_finished()]


@pytest.mark.parametrize("beside", [True, False])
def test_a_load_starts_before_the_pass_where_the_pass_is_computed_on_this_thread(
    beside: bool,
) -> None:
    calls: list[str] = []
    made, meta = loading(calls, beside=beside), load_step(5)
    context: Any = None
    made.handle_preemptions(meta)
    made.bind_connector_metadata(meta)
    calls.append("pass")
    assert ended(made) == []  # vLLM does not know it before it has submitted it
    made.start_load_kv(context)
    work = ["copy [5]", "pass"] if beside else ["pass", "copy [5]"]
    assert calls == ["launched", "flush", "launching", *work, "launched"]
    assert (ended(made), ended(made)) == ([5], [])


def test_in_a_step_that_computes_nothing_the_rank_rests_until_its_load_is_over() -> None:
    made = loading([], beside=True, rests=1)
    step(made)
    for meta, over in ((load_step(5), []), (load_step(6, idle=True), [5]), (META, [])):
        made.handle_preemptions(meta)
        made.bind_connector_metadata(meta)
        made.start_load_kv(None)
        assert ended(made) == over


def test_a_store_that_is_flushed_has_read_its_block_before_a_load_of_the_same_step_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By vLLM's own half, in the order of its runners, with real copies; those of stores are slow."""
    arena, (page,) = Arena(2, 4096), pages([4096])
    engine = CpuTransferEngine(arena, {0: [page]}, 1)
    offload = engine._offload

    def slowly(work: Work) -> None:
        time.sleep(0.05)
        offload(work)

    monkeypatch.setattr(engine, "_offload", slowly)
    made = connector([])
    made._rank = halves.rank(halves.worker(engine))
    vllm = made.connector_worker = OffloadingConnectorWorker.__new__(OffloadingConnectorWorker)
    vllm.worker, vllm._is_store_writer = made.rank.worker, True
    vllm._unsubmitted_store_jobs, vllm._load_jobs = [], {}
    arena.slot(1)[:] = 11
    page[7] = 22
    device = GPULoadStoreSpec([7], [1], [0])
    store = TransferJob("finished", device, SlotSpec(1, ((0,),)))
    load = TransferJob("new", SlotSpec(2, ((1,),)), device)
    context: Any = None
    for meta in (
        KVTierMetadata({}, {1: store}, None),
        KVTierMetadata({2: load}, {}, {1}),
    ):
        made.handle_preemptions(meta)
        made.bind_connector_metadata(meta)
        made.start_load_kv(context)
        vllm.prepare_store_kv(meta)
    vllm.worker.wait({1, 2})
    assert (arena.slot(0) == 22).all()
    assert (page[7] == 11).all()
    engine.close()
    arena.close()
