"""Binding where there is something to choose: on a machine with three nodes, one of them memory only."""

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from kvtier import topology
from kvtier.doctor import devices, probes
from kvtier.doctor.finding import Level, Patient
from kvtier.io_process.client import IoClient, IoSetup
from kvtier.memory import placement
from kvtier.memory.arena import Arena
from kvtier.memory.region import Region
from kvtier.testing.tiers import FIRST, pages
from kvtier.tier import Site
from kvtier.tiers.memory import MemoryConfig, MemoryTier

NODES = topology.numa_nodes()
pytestmark = [
    pytest.mark.numa,
    pytest.mark.skipif(len(NODES) < 3, reason="needs three NUMA nodes: make test-numa"),
]

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    yield
    placement.prefer(None)


@pytest.mark.parametrize("node", range(3))
@pytest.mark.parametrize("elsewhere", range(3))
def test_the_arena_is_on_its_node_whatever_the_process_prefers(node: int, elsewhere: int) -> None:
    assert placement.prefer(elsewhere) == ""
    arena = Arena(8, MIB, [node])
    arena.prefault(2)
    assert arena._prefault is not None
    arena._prefault.wait()
    assert (arena.refused, arena.locate().absent) == ("", 0)
    assert arena.located() == [(node, 8 * MIB)]
    arena.close()


def test_a_first_touch_from_another_thread_and_node_stays_bound() -> None:
    arena = Arena(4, MIB, [2])

    def touch() -> None:
        os.sched_setaffinity(0, {1})
        placement.prefer(1)
        arena.slot(0)[:] = 1

    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()
    assert arena.locate().share([2]) == 1.0
    arena.close()


def test_without_binding_the_process_s_preference_decides() -> None:
    """What the tests above would see if binding did nothing."""
    placement.prefer(1)
    arena = Arena(4, MIB)
    arena.slot(0)[:] = 1
    assert arena.locate().share([1]) == 1.0
    arena.close()


def test_several_nodes_are_interleaved() -> None:
    region = Region(8 * MIB, [0, 1], shared=False)
    region.bytes[:] = 1
    shares = dict(placement.locate(region.address, 8 * MIB, samples=2048).spread(8 * MIB))
    assert set(shares) == {0, 1}
    assert abs(shares[0] - shares[1]) <= 4 * MIB  # huge pages go by pages of 2 MiB
    region.close()


def test_a_full_node_lends_from_others() -> None:
    node = topology.nodes()[2]
    region = Region(node.nbytes + 16 * MIB, [2], shared=False)
    region.bytes[::4096] = 1
    where = region.locate()
    assert where.absent == 0
    assert 0 < where.share([2]) < 1
    region.close()


def test_the_memory_tier_is_on_the_node_without_processors() -> None:
    assert topology.nodes()[2].memory_only
    tier = MemoryTier(MemoryConfig(), Site("cxl", capacity=32 * MIB, nodes=(2,)))
    tier.open(FIRST, "{}")
    record, out = pages(512, seed=1), pages(512)
    tier.write(b"k", [record])
    assert tier.read(b"k", [out]) == len(record)
    assert np.array_equal(out, record)
    assert [node for node, _ in tier.located()] == [2]
    tier.close()


def test_explicit_huge_pages_of_the_node_are_taken() -> None:
    free = next(h.free for h in topology.nodes()[2].huge_pages if h.page_nbytes == 2 * MIB)
    if free < 4:
        pytest.skip("the node has no huge pages")
    arena = Arena(8, MIB, [2])
    arena.slot(0)[:] = 1
    assert arena.huge
    assert arena.locate().share([2]) == 1.0
    arena.close()


def test_the_i_o_process_runs_on_its_rank_s_node() -> None:
    arena = Arena(2, 8192, [1])
    tier: dict[str, object] = {"name": "far", "kind": "memory", "capacity": MIB, "numa": [2]}
    setup = IoSetup(
        arena_nbytes=arena.nbytes,
        slot_nbytes=8192,
        group_nbytes={0: 8192},
        tiers=[tier],
        numa_node=1,
    )
    client = IoClient(setup, arena.fd)
    client.wait_ready(120)
    assert client.pid
    assert os.sched_getaffinity(client.pid) == set(topology.nodes()[1].cpus)
    client.close()
    arena.close()


def test_the_doctor_finds_every_node_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_NBYTES", 16 * MIB)
    found = list(probes.binding(Patient()))
    assert [finding.level for finding in found] == [Level.OK] * len(NODES)
    assert not [each for each in devices.cross_check(Patient()) if each.level is not Level.OK]
