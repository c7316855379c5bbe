"""Memory of a CXL device, on the node that Linux made of it."""

import numpy as np
import pytest

from kvtier import topology
from kvtier.doctor import devices
from kvtier.doctor.finding import Level, Patient
from kvtier.memory import placement
from kvtier.memory.arena import Arena
from kvtier.testing.tiers import FIRST, pages
from kvtier.tier import Site
from kvtier.tiers.memory import MemoryConfig, MemoryTier
from kvtier.topology import CxlDevice, CxlRegion

REGIONS = topology.cxl_regions()
pytestmark = [
    pytest.mark.numa,
    pytest.mark.skipif(not REGIONS, reason="needs a CXL region: make test-numa"),
]

MIB = 1 << 20


@pytest.fixture
def node() -> int:
    found = REGIONS[0].node
    assert found is not None
    return found


def test_the_device_and_its_region_are_found(node: int) -> None:
    assert topology.cxl_devices() == (CxlDevice("mem0", 0, 256 * MIB, None),)
    assert list(REGIONS) == [CxlRegion("region0", 256 * MIB, "pmem", True, node)]


def test_its_node_has_memory_and_no_processor(node: int) -> None:
    (far,) = (each for each in topology.nodes() if each.number == node)
    assert far.memory_only
    assert 0 < far.nbytes < 256 * MIB  # less what the namespace and whole blocks of memory take


def test_the_arena_is_on_it_whatever_the_process_prefers(node: int) -> None:
    assert placement.prefer(0) == ""
    arena = Arena(8, MIB, [node])
    arena.prefault(2)
    assert arena._prefault is not None
    arena._prefault.wait()
    placement.prefer(None)
    assert arena.located() == [(node, 8 * MIB)]
    arena.slot(3)[:] = 7
    assert (arena.slot(3) == 7).all()
    arena.close()


def test_the_memory_tier_is_on_it(node: int) -> None:
    tier = MemoryTier(MemoryConfig(), Site("cxl", capacity=8 * MIB, nodes=(node,)))
    tier.open(FIRST, "{}")
    record, out = pages(64, seed=1), pages(64)
    tier.write(b"k", [record])
    assert tier.read(b"k", [out]) == len(record)
    assert np.array_equal(out, record)
    assert [where for where, _ in tier.located()] == [node]
    tier.close()


def test_the_doctor_says_so(node: int) -> None:
    device, region = devices.cxl(Patient())
    assert (device.level, region.level) == (Level.OK, Level.OK)
    assert device.what == "mem0: 0B volatile, 256MiB persistent"
    assert region.what == f"region0: 256MiB of pmem, in use as node {node}"
