"""The line that vLLM logs of what moved."""

import pytest

pytest.importorskip("vllm")

from kvtier.brain.stats import CacheStats, TierStats
from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.metrics import Meter
from kvtier.types import OpStatus


def logged(*told: object) -> str:
    """Add up as vLLM does, and give what it logs."""
    total = KVTierConnector.build_kv_connector_stats()
    for each in told:
        total.aggregate(KVTierConnector.build_kv_connector_stats(each.data))  # type: ignore[attr-defined]
    return str(total.reduce()["kvtier"])


def test_what_moved_is_said_and_nothing_else() -> None:
    meter, nvme = Meter(), TierStats(name="nvme")
    stats = CacheStats(tiers=(TierStats(name="dram"), nvme))
    first = meter.collect(stats)
    assert first is not None
    assert logged(first) == "dram: 0B in use; nvme: 0B in use"
    stats.loads, nvme.hits, nvme.used = 3, 3, 3 << 20
    nvme.failures[OpStatus.ERROR] += 1
    nvme.failures[OpStatus.CORRUPT] += 1
    moved = meter.collect(stats)
    assert moved is not None
    moved.increase_counter("vllm:kv_offload_load_bytes", 3 << 20)
    moved.increase_counter("vllm:kv_offload_load_time", 0.02)
    said = "loaded 3 chunks (3MiB in 0.02 s); nvme: 3 hits, 2 failed, 3MiB in use"
    assert logged(moved) == said
    off = meter.off()
    assert off is not None
    assert logged(off) == "off"
