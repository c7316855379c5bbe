"""A worker without an engine: its arena is bound and filled in, its memory tier has its share, both are reported."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
)

from kvtier import topology
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.types import OpKind, OpResult, OpStatus, TierOp
from tests.patience import until

PAGE = 8192
TIERS = [
    {"kind": "dram", "capacity": "4MiB"},
    {"name": "far", "kind": "memory", "capacity": "4MiB", "numa": [topology.numa_nodes()[0]]},
]


@pytest.fixture
def worker() -> Iterator[KVTierWorker]:
    tensor = torch.zeros((4, PAGE), dtype=torch.int8)
    caches = CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor, PAGE)], [[CanonicalKVCacheRef(0, PAGE)]]
    )
    config: Any = SimpleNamespace(
        extra_config={"kvtier": {"tiers": TIERS}},
        cache=SimpleNamespace(blocks_per_chunk=2),
        groups=[SimpleNamespace(group_id=0)],
        model=SimpleNamespace(dtype="bfloat16"),
        parallel=SimpleNamespace(rank=1, world_size=2, data_parallel_index=0, data_parallel_size=1),
        engine_id="engine",
    )
    worker = KVTierWorker(config, caches)
    yield worker
    worker.shutdown()


def run(worker: KVTierWorker, ops: list[TierOp]) -> list[OpResult]:
    worker.submit_ops(ops)
    found: list[OpResult] = []

    def poll() -> None:
        found.extend(each for each in worker.poll() if isinstance(each, OpResult))

    until(lambda: len(found) >= len(ops), f"{len(ops)} operations are answered", poll)
    return found


def test_the_whole_way(worker: KVTierWorker) -> None:
    ids = itertools.count(1)
    assert run(worker, [TierOp(next(ids), OpKind.OPEN, 1, text="{}")])[0].status is OpStatus.OK
    worker.arena.slot(0)[:] = 7
    writes = [TierOp(next(ids), OpKind.WRITE, 1, bytes([i]) * 36, 0) for i in range(120)]
    results = run(worker, writes)
    held = sum(result.status is OpStatus.OK for result in results)
    assert held == (2 << 20) // (2 * PAGE + 4096)  # a rank's share is half
    stored = next(result.op for result in results if result.status is OpStatus.OK)
    key = next(op.key for op in writes if op.op == stored)
    assert run(worker, [TierOp(next(ids), OpKind.READ, 1, key, 9)])[0].status is OpStatus.OK
    assert (worker.arena.slot(9) == 7).all()


def test_where_its_memory_is(worker: KVTierWorker) -> None:
    assert worker.arena.refused == ""
    assert worker.arena._prefault is not None
    worker.arena._prefault.wait()
    run(worker, [TierOp(1, OpKind.CANCEL, 1)])  # the I/O process has had a turn
    placed = {each.tier: each for each in worker.placed()}
    assert placed[0].nbytes == worker.arena.nbytes
    assert {each.rank for each in placed.values()} == {1}
    assert {each.node for each in placed.values()} <= set(topology.numa_nodes())
