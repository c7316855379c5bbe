"""Memory is bound by direct system calls, verified after the fact, and used all the same where that is refused."""

import ctypes
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import kvtier.memory.region as region_module
from kvtier import topology
from kvtier.memory import placement
from kvtier.memory.arena import Arena
from kvtier.memory.placement import Placement
from kvtier.memory.prefault import Prefault
from kvtier.memory.region import Region
from kvtier.topology import numa_nodes
from kvtier.types import PAGE
from tests import trees
from tests.sealed import run_sealed

NODE = numa_nodes()[0]


class Calls:
    """Takes the system calls down instead of making them."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[object, ...]]] = []

    def __call__(self, name: str, *arguments: object) -> str:
        self.made.append((name, arguments))
        return ""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(placement, "_call", calls)
    return calls


def bits(mask: object) -> set[int]:
    assert isinstance(mask, ctypes.Array)
    words = list(mask)
    return {64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1}


def test_one_node_is_preferred_and_several_are_interleaved(calls: Calls) -> None:
    assert placement.bind(PAGE, 3 * PAGE, [65]) == ""
    assert placement.bind(PAGE, 3 * PAGE, [1, 130]) == ""
    (_, one), (_, several) = calls.made
    assert (one[:3], bits(one[3])) == ((PAGE, 3 * PAGE, 1), {65})
    assert (several[2], bits(several[3])) == (3, {1, 130})


def test_a_region_is_bound_before_its_first_page_is_taken(calls: Calls) -> None:
    region = Region(2 * PAGE, [NODE], shared=True)
    assert [name for name, _ in calls.made] == ["mbind"]
    region.close()


def test_without_nodes_the_kernel_chooses(calls: Calls) -> None:
    Region(PAGE, shared=False).close()
    assert calls.made == []


@pytest.mark.parametrize("shared", [True, False])
def test_pages_are_where_they_were_bound_to(shared: bool) -> None:
    region = Region(64 * PAGE, [NODE], shared=shared)
    assert region.refused == ""
    region.bytes[: 16 * PAGE : PAGE] = 1
    where = region.locate()
    assert where.error == ""
    assert [node for node, _ in where.nodes] == [NODE]
    assert where.present >= 16
    assert where.present + where.absent == 64
    assert where.share([NODE]) == 1.0
    assert where.share([NODE + 1]) == 0.0
    region.close()


def test_of_a_large_region_a_sample_is_located() -> None:
    region = Region(4096 * PAGE, shared=True)
    found = placement.locate(region.address, len(region.bytes), samples=100)
    assert (found.present, found.absent) == (0, 100)
    assert found.share([NODE]) == 1.0
    region.close()


def test_prefault_takes_every_page_and_changes_none() -> None:
    region = Region(40 << 20, shared=True)
    region.bytes[:] = 7
    fresh = Region(40 << 20, shared=True)
    for each in (region, fresh):
        prefault = Prefault(each.bytes, threads=2, bound=True)
        prefault.wait()
        assert prefault.error == ""
        assert each.locate().absent == 0
    assert np.all(region.bytes == 7)
    assert not fresh.bytes.any()
    region.close()
    fresh.close()


def test_prefault_stops_where_it_is() -> None:
    region = Region(64 << 20, shared=True)
    prefault = Prefault(region.bytes, threads=1, bound=False)
    prefault.stop()
    prefault.stop()
    assert not any(thread.is_alive() for thread in prefault._threads)
    region.close()


def test_an_arena_that_closes_while_it_is_filled_in_leaves_no_thread() -> None:
    arena = Arena(16, 1 << 20, [NODE])
    arena.prefault(2)
    arena.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("prefault")]
    assert arena.locate().error == "closed"


def test_what_the_kernel_refuses_is_said_in_words() -> None:
    assert "mbind: " in placement.bind(PAGE + 1, PAGE, [NODE])  # not at a page's start
    assert "madvise: " in placement.populate(1 << 46, PAGE)  # nothing is mapped there


def test_an_unknown_processor_has_no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert placement.bind(0, PAGE, [0]) == "mbind: not known on pdp11"
    assert placement.locate(0, PAGE) == Placement((), 0, "move_pages: not known on pdp11")


def test_under_seccomp_memory_works_unbound_and_says_so() -> None:
    said = run_sealed(
        "from kvtier.memory.arena import Arena\n"
        "from kvtier.memory import placement\n"
        f"arena = Arena(4, 8192, [{NODE}])\n"
        "arena.slot(3)[:] = 5\n"
        "print(arena.refused, arena.locate().error, placement.prefer(0), arena.slot(3).sum(), sep='|')"
    )
    assert said.strip().split("|") == [
        "mbind: Operation not permitted",
        "move_pages: Operation not permitted",
        "set_mempolicy: Operation not permitted",
        str(5 * 8192),
    ]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("refused", [True, False])
def test_huge_pages_are_all_there_or_not_used(
    shared: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container whose cgroup has no huge pages maps them, and dies at the first touch."""
    populate, held = placement.populate, len(os.listdir("/proc/self/fd"))

    def forbidden(address: int, nbytes: int) -> str:
        return "madvise: Bad address" if nbytes < 16 << 20 else populate(address, nbytes)

    def map_huge(nbytes: int, *_: object) -> region_module._Mapped:
        return region_module._map(nbytes, "kvtier" if shared else "")._replace(huge=True)

    monkeypatch.setattr(region_module, "_map_huge", map_huge)
    if refused:
        monkeypatch.setattr(placement, "populate", forbidden)  # of the last piece
    region = Region(33 << 20, [NODE], shared=shared)
    assert region.huge is not refused
    assert (region.fd >= 0) == shared
    assert region.refused == ""
    assert (region.locate().absent == 0) is not refused
    assert (
        len(os.listdir("/proc/self/fd")) == held + 2 * shared
    )  # Python keeps one with the mapping
    region.bytes[:] = 1
    region.close()


def test_without_nodes_no_huge_page_of_cxl_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = topology.nodes(trees.cxl(tmp_path))
    monkeypatch.setattr(topology, "nodes", lambda: described)
    found = [region_module.free_huge_nbytes(nodes) for nodes in ([], [1], [0, 1])]
    assert [nbytes >> 21 for nbytes in found] == [2, 2, 4]  # of no node in particular: of node 0
