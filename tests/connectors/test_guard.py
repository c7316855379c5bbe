"""Every hook of ours that vLLM calls while it serves: whatever fails in it turns kvtier off, and vLLM's own half goes on."""

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_events import BlockRemoved
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_offload.base import LookupResult, OffloadingManager, ReqContext, ScheduleEndContext

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.copy_job import CopyJob, CopyPart
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.manager import TieredCacheManager
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata, SlotSpec
from tests.connectors import halves

AT_START = {
    *("__new__", "__init__", "register_kv_caches"),
    *("set_xfer_handshake_metadata_pp_aware", "build_prom_metrics", "get_manager"),
}
"""A fault in these refuses the start, in words."""


class Failing:
    """A side of the connector of which everything fails, also what hangs on it."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def __getattr__(self, name: str) -> "Failing":
        return Failing(self.guard)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")


def hooks(ours: type, *theirs: type) -> list[str]:
    """List what a class of ours overrides of vLLM's, but for what runs at the start."""
    overridden = {name for cls in theirs for name in vars(cls)}
    own = [name for name, member in vars(ours).items() if callable(member)]
    return [name for name in own if name in overridden and name not in AT_START]


REQUEST = SimpleNamespace(request_id="r", kv_transfer_params=None)
OUTPUT = SimpleNamespace(
    kv_connector_worker_meta=KVTierWorkerMetadata(), total_num_scheduled_tokens=0
)
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "on_new_request": (REQUEST,),
    "get_num_new_matched_tokens": (REQUEST, 0),
    "update_state_after_alloc": (REQUEST, None, 0),
    "get_external_cache_hit_sources": (REQUEST, 16),
    "build_connector_meta": (OUTPUT,),
    "update_connector_output": (OUTPUT,),
    "request_finished": (REQUEST, []),
    "request_finished_all_groups": (REQUEST, ()),
    "bind_gpu_block_pool": (Failing(Guard()),),
    "handle_preemptions": (KVTierMetadata({}, {}, None),),
    "bind_connector_metadata": (KVTierMetadata({}, {}, None),),
    "start_load_kv": (None,),
    "get_transfer_results": (set(),),
}
WORKER_META = OffloadingWorkerMetadata()
ANSWERS: dict[str, object] = {
    "get_num_new_matched_tokens": (10, True),
    "build_connector_meta": OffloadingConnectorMetadata({}, {}, None),
    "take_events": [BlockRemoved([1], "CPU")],
    "get_finished": (set(), {"r"}),
    "build_connector_worker_meta": WORKER_META,
    "has_pending_push_work": False,
    "reset_cache": True,
    "request_finished": (False, None),
    "request_finished_all_groups": (False, None),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which hooks of vLLM's half were called; each has its answer."""
    called: list[str] = []

    def stub(name: str) -> Callable[..., object]:
        def call(self: object, *args: object, **kwargs: object) -> object:
            called.append(name)
            return ANSWERS.get(name)

        return call

    for name in {*hooks(KVTierConnector, OffloadingConnector, KVConnectorBase_V1), "get_finished"}:
        monkeypatch.setattr(OffloadingConnector, name, stub(name), raising=False)
    return called


def failing_connector(guard: Guard) -> Any:
    made: Any = object.__new__(KVTierConnector)
    made._scheduling = made._rank = Failing(guard)
    made._pool, made._forsaking, made._connector_metadata = Failing(guard), True, None
    made._lookups = Failing(guard)
    return made


@pytest.mark.parametrize("off", ["", "off before"])
@pytest.mark.parametrize("hook", hooks(KVTierConnector, OffloadingConnector, KVConnectorBase_V1))
def test_a_hook_that_fails_leaves_vllm_s_own_half_at_work(
    asked: list[str], hook: str, off: str
) -> None:
    guard = Guard()
    guard.broken = off
    made = failing_connector(guard)
    answer = getattr(made, hook)(*ARGUMENTS.get(hook, ()))
    if hook == "get_num_new_matched_tokens":
        assert answer == (0, False), "of a hit that nobody pinned nothing is loaded"
    elif hook == "get_transfer_results":
        assert answer.failed_recving == {"r"}
    elif hook == "build_connector_worker_meta":
        assert guard.broken in answer.broken
        assert answer.completed_jobs is WORKER_META.completed_jobs
    elif hook == "build_connector_meta":
        assert isinstance(answer, KVTierMetadata)
    if hook not in ("get_block_ids_with_load_errors", "get_transfer_results"):
        assert hook in asked
    if hook != "bind_gpu_block_pool":
        assert "Too many open files" in guard.broken or off


MANAGER: dict[str, tuple[object, ...]] = {
    "lookup": (b"k" * 36, ReqContext(req_id="r")),
    "get_load_source": (b"k" * 36, ReqContext(req_id="r")),
    "prepare_load": ([b"k" * 36], ReqContext(req_id="r")),
    "prepare_store": ([b"k" * 36], ReqContext(req_id="r")),
    "on_new_request": (ReqContext(req_id="r"),),
    "on_request_finished": (ReqContext(req_id="r"),),
    "on_schedule_end": (ScheduleEndContext([], []),),
}


@pytest.mark.parametrize("off", ["", "off before"])
@pytest.mark.parametrize("hook", hooks(TieredCacheManager, OffloadingManager))
def test_a_manager_that_fails_answers_all_the_same(hook: str, off: str) -> None:
    manager = TieredCacheManager(Guard())
    manager.guard.broken = off
    side: Any = Failing(manager.guard)
    manager.serve(side)
    answer = getattr(manager, hook)(*MANAGER.get(hook, ()))
    if hook == "lookup":
        assert answer is LookupResult.MISS
    elif hook == "prepare_load":
        assert (answer.plan, answer.slots) == (None, ())
    elif hook == "prepare_store":
        assert not answer.keys_to_store


class BadTransfer:
    """A copy of which nobody can say whether it is over."""

    def done(self) -> bool:
        raise OSError(errno.EIO, "the device is gone")

    def result(self) -> None:
        raise OSError(errno.EIO, "the device is gone")

    def stop(self) -> None:
        raise OSError(errno.EIO, "the device is gone")


def test_a_job_that_cannot_end_well_fails_and_no_call_of_vllm_s_raises() -> None:
    engine = Failing(Guard())
    made = halves.worker(engine)
    transfer: Any = BadTransfer()
    made._jobs[1] = CopyJob(2, (7, 8), parts=[CopyPart(transfer, [0, 1])])
    made.guard.always(made.fail_loads, None)
    made.wait({1})
    (result,) = made.get_finished()
    assert (result.job_id, result.success) == (1, True)
    assert made.take_failed() == {1: {0, 1}}
    assert made.take_invalid_blocks() == {7, 8}
    assert made.take_failed_loads() == {1}
    made.io, made.arena = None, engine  # type: ignore[assignment] # that fail
    made.shutdown()
    assert made.guard.broken


def test_a_load_whose_slots_nobody_knows_fails_as_a_whole() -> None:
    from vllm.v1.kv_offload.base import GPULoadStoreSpec

    made = halves.worker(Failing(Guard()))
    blocks = GPULoadStoreSpec([3, 4], group_sizes=[2], block_indices=[0])
    assert made.submit_load(1, SlotSpec(None, ()), blocks)
    assert [result.job_id for result in made.get_finished()] == [1]
    assert made.take_invalid_blocks() == {3, 4}
    assert made.take_failed_loads() == {1}
