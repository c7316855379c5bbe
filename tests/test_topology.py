"""The kernel's view of other machines, read as ours is."""

from pathlib import Path

import pytest

from kvtier import topology
from kvtier.topology import free_nbytes, limit_nbytes, numa_nodes, parse_list
from tests import trees
from tests.trees import GIB, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "proc/meminfo",
        f"MemTotal: {8 * GIB >> 10} kB\nMemAvailable: {4 * GIB >> 10} kB\n",
    )
    return tmp_path


def limit_v2(root: Path, group: str, most: str, used: int, cache: int = 0) -> None:
    write(root, f"sys/fs/cgroup/{group}/memory.max", most)
    write(root, f"sys/fs/cgroup/{group}/memory.current", used)
    write(root, f"sys/fs/cgroup/{group}/memory.stat", f"anon 1\ninactive_file {cache}")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0\n", (0,)), ("0-3", (0, 1, 2, 3)), ("0-1,8", (0, 1, 8)), ("\n", ())],
)
def test_kernel_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_list(text) == numbers


def test_nodes_are_those_online(root: Path) -> None:
    assert numa_nodes(root) == (0,)
    write(root, "sys/devices/system/node/online", "0,2\n")
    assert numa_nodes(root) == (0, 2)


def test_one_socket(tmp_path: Path) -> None:
    (node,) = topology.nodes(trees.one_socket(tmp_path))
    assert (node.number, node.cpus, node.nbytes) == (0, tuple(range(16)), 64 * GIB)
    assert node.free_nbytes == 32 * GIB
    assert not node.memory_only
    assert [(h.page_nbytes, h.total, h.free) for h in node.huge_pages] == [
        (GIB, 0, 0),
        (2 << 20, 4, 2),
    ]
    assert topology.gpus(tmp_path) == ()  # the BMC's is none
    (drive,) = topology.drives(tmp_path)
    assert (drive.name, drive.node, drive.disks) == ("nvme0", None, ("nvme0n1",))
    assert drive.model == "SAMSUNG MZQL23T8HCLS-00A07"


def test_two_sockets_with_four_gpus(tmp_path: Path) -> None:
    trees.two_sockets(tmp_path)
    first, second = topology.nodes(tmp_path)
    assert first.distances == (10, 21)
    assert second.cpus[0] == 32
    assert [gpu.node for gpu in topology.gpus(tmp_path)] == [0, 0, 1, 1]
    assert topology.node_of_pci("0000:2A:00.0", tmp_path) == 0
    assert topology.node_of_pci("0000:9c:00.0", tmp_path) == 1
    assert topology.node_of_pci("0000:00:00.0", tmp_path) is None
    assert topology.drives(tmp_path)[0].node == 1
    assert topology.node_of_cpus({32, 97}, tmp_path) == 1
    assert topology.node_of_cpus({0, 97}, tmp_path) is None
    link = topology.gpus(tmp_path)[0].link
    assert link is not None
    assert (link.speed, link.width, link.max_speed, link.max_width) == (2.5, 16, 32, 16)
    assert link.gb_s == pytest.approx(63.0, abs=0.1)  # what PCIe 5.0 x16 is known for


def test_cxl_memory_is_a_node_without_processors(tmp_path: Path) -> None:
    trees.cxl(tmp_path)
    near, far = topology.nodes(tmp_path)
    assert (near.memory_only, far.memory_only) == (False, True)
    assert (far.nbytes, far.latency_ns, far.bandwidth_mb_s) == (128 * GIB, 240, 28000)
    (device,) = topology.cxl_devices(tmp_path)
    assert (device.name, device.ram_nbytes, device.node) == ("mem0", 128 * GIB, 0)
    (region,) = topology.cxl_regions(tmp_path)
    assert (region.nbytes, region.mode, region.committed, region.node) == (
        128 * GIB,
        "ram",
        True,
        1,
    )


def test_persistent_cxl_memory_is_found_by_its_region_s_name(tmp_path: Path) -> None:
    trees.cxl_persistent(tmp_path)
    (device,) = topology.cxl_devices(tmp_path)
    assert (device.ram_nbytes, device.pmem_nbytes, device.node) == (0, GIB >> 2, None)
    (region,) = topology.cxl_regions(tmp_path)
    assert region == ("region0", GIB >> 2, "pmem", True, 3)


def test_sub_numa_clusters_are_nodes_of_their_own(tmp_path: Path) -> None:
    trees.sub_numa(tmp_path)
    assert [node.distances[0] for node in topology.nodes(tmp_path)] == [10, 12, 12, 12]
    assert topology.gpus(tmp_path)[0].node == 2
    assert topology.node_of_cpus({9, 10}, tmp_path) == 1
    assert topology.node_of_cpus({7, 8}, tmp_path) is None


def test_a_container_sees_its_limit(tmp_path: Path) -> None:
    trees.container(tmp_path)
    assert limit_nbytes(tmp_path) == 32 * GIB
    assert free_nbytes(tmp_path) == 24 * GIB


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    assert topology.nodes(tmp_path) == ()
    assert numa_nodes(tmp_path) == (0,)
    for listed in (topology.gpus, topology.drives, topology.cxl_devices, topology.cxl_regions):
        assert not listed(tmp_path)
    assert topology.node_of_cpus({0}, tmp_path) is None
    assert limit_nbytes(tmp_path) is None
    assert free_nbytes(tmp_path) > 0  # as the C library says


def test_a_file_that_says_nonsense_is_absent(tmp_path: Path) -> None:
    trees.two_sockets(tmp_path)
    device = tmp_path / "sys/bus/pci/devices/0000:17:00.0"
    (device / "numa_node").write_text("what\n")
    (device / "max_link_speed").write_text("Unknown\n")
    first = topology.gpus(tmp_path)[0]
    assert (first.node, first.link) == (None, None)


def test_this_machine() -> None:
    described = topology.nodes()
    assert {node.number for node in described} <= set(numa_nodes())
    assert all(node.nbytes > 0 for node in described if node.cpus)


def test_without_a_cgroup_the_machine_counts(root: Path) -> None:
    assert free_nbytes(root) == 4 * GIB
    assert limit_nbytes(root) is None


def test_the_tightest_limit_above_the_process_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/pod/engine\n")
    limit_v2(root, "pod/engine", "max", 0)
    limit_v2(root, "pod", str(3 * GIB), 2 * GIB)
    assert free_nbytes(root) == GIB
    assert limit_nbytes(root) == 3 * GIB


def test_page_cache_counts_as_free(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    limit_v2(root, ".", str(3 * GIB), 2 * GIB, cache=GIB)
    assert free_nbytes(root) == 2 * GIB


def test_a_limit_that_is_overdrawn_leaves_nothing(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    limit_v2(root, ".", str(GIB), 2 * GIB)
    assert free_nbytes(root) == 0


def test_cgroup_v1(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu:/a\n4:memory:/a\n")
    write(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", str(2 * GIB))
    write(root, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", str(GIB))
    write(root, "sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file 0\n")
    assert free_nbytes(root) == GIB
