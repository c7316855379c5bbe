"""Stores whose blocks were overwritten before they were copied are no chunks."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import MambaSpec
from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.connectors.vllm.messages import KVTierMetadata, SlotSpec
from kvtier.connectors.vllm.overwrites import Overwrites
from kvtier.transfer.engine import Moved, Transfer
from tests.connectors import halves

MAMBA = SimpleNamespace(
    kv_cache_spec=MambaSpec(block_size=16, shapes=((4, 4),), dtypes=(torch.float32,))
)


def overwrites(*, v2: bool, groups: tuple[object, ...] = ()) -> Overwrites:
    engine: Any = SimpleNamespace(use_v2_model_runner=v2)
    cache: Any = SimpleNamespace(kv_cache_groups=groups)
    return Overwrites(engine, cache)


def output(**written: object) -> Any:
    nothing = {"new_block_ids_to_zero": None, "kv_cache_block_copies": None}
    return SimpleNamespace(
        **{"total_num_scheduled_tokens": 0, "num_scheduled_tokens": {}, **nothing, **written}
    )


def test_only_a_runner_that_flushes_late_spoils_stores() -> None:
    zeroing = output(new_block_ids_to_zero=[3])
    assert overwrites(v2=False).spoiled(zeroing, {7}) == set()
    assert overwrites(v2=False, groups=(MAMBA,)).spoiled(zeroing, {7}) == set()
    assert overwrites(v2=True).spoiled(zeroing, {7, 8}) == {7, 8}
    assert overwrites(v2=True).spoiled(output(kv_cache_block_copies=[object()]), {7}) == {7}
    assert overwrites(v2=True, groups=(MAMBA,)).spoiled(output(), {7}) == {7}
    assert overwrites(v2=True).spoiled(output(), {7}) == set()
    assert overwrites(v2=True).spoiled(zeroing, None) == set()
    release_without_them: Any = SimpleNamespace()
    assert overwrites(v2=True).spoiled(release_without_them, {7}) == set()


class Done(Transfer):
    def done(self) -> bool:
        return True

    def result(self) -> Moved:
        return Moved(4096, 0.001)


class Engine:
    def offload_each(self, stores: Sequence[object]) -> list[Transfer]:
        return [Done() for _ in stores]

    def launched(self) -> None:
        pass


def test_a_spoiled_store_ends_well_for_vllm_and_gives_no_chunk() -> None:
    """From the step that says so to the rank's answer; also one that is submitted after it was spoiled."""
    side, worker = halves.scheduling(use_v2_model_runner=True), halves.worker(Engine())
    rank = halves.rank(worker)
    device = GPULoadStoreSpec([5, 6], group_sizes=[2], block_indices=[0])
    worker.submit_store(1, device, SlotSpec(1, ((0, 1),)))
    meta = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush={1, 2, 77})
    side.step(output(new_block_ids_to_zero=[5]), meta)
    rank.before(meta)
    worker.submit_store(2, device, SlotSpec(2, ((2, 3),)))
    worker.submit_store(3, device, SlotSpec(3, ((4, 5),)))
    rank.after()
    assert worker._spoiled == {1, 2}, "77 is none of this rank's"
    assert all(result.success for result in worker.get_finished())
    assert worker.take_failed() == {1: {0, 1}, 2: {0, 1}}
    assert not worker._spoiled
