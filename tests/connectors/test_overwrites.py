"""Stores whose blocks were overwritten before they were copied are no chunks."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.overwrites import Overwrites
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.transfer.engine import Moved, Transfer


def overwrites(*, v2: bool, mamba: bool = False) -> Overwrites:
    made = Overwrites(SimpleNamespace(use_v2_model_runner=v2), SimpleNamespace(kv_cache_groups=[]))
    made._moves_states = mamba
    return made


def output(**written: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"new_block_ids_to_zero": None, "kv_cache_block_copies": None, **written}
    )


def test_only_a_runner_that_flushes_late_spoils_stores() -> None:
    zeroing = output(new_block_ids_to_zero=[3])
    assert overwrites(v2=False).spoiled(zeroing, {7}) == set()
    assert overwrites(v2=True).spoiled(zeroing, {7, 8}) == {7, 8}
    assert overwrites(v2=True).spoiled(output(kv_cache_block_copies=[object()]), {7}) == {7}
    assert overwrites(v2=True, mamba=True).spoiled(output(), {7}) == {7}
    assert overwrites(v2=True).spoiled(output(), {7}) == set()
    assert overwrites(v2=True).spoiled(zeroing, None) == set()
    assert overwrites(v2=True).spoiled(SimpleNamespace(), {7}) == set()  # a release without them


class Done(Transfer):
    def done(self) -> bool:
        return True

    def result(self) -> Moved:
        return Moved(4096, 0.001)


class Engine:
    def offload(self, copies: object) -> Transfer:
        return Done()


def test_a_spoiled_store_ends_well_for_vllm_and_gives_no_chunk() -> None:
    """Also one that is submitted only after it was spoiled, as vLLM does."""
    worker = KVTierWorker.__new__(KVTierWorker)
    worker.blocks_per_chunk, worker._groups, worker._engine = 1, [0], Engine()  # type: ignore[assignment]
    worker._jobs, worker._failed, worker._spoiled = {}, {}, set()
    worker._failed_loads, worker._invalid_blocks, worker.guard = set(), set(), Guard()
    device = GPULoadStoreSpec([5, 6], group_sizes=[2], block_indices=[0])
    worker.submit_store(1, device, SlotSpec(1, ((0, 1),)))
    worker.spoil({1, 2})
    worker.submit_store(2, device, SlotSpec(2, ((2, 3),)))
    worker.submit_store(3, device, SlotSpec(3, ((4, 5),)))
    assert all(result.success for result in worker.get_finished())
    assert worker.take_failed() == {1: {0, 1}, 2: {0, 1}}
    assert not worker._spoiled
