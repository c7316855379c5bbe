from pathlib import Path

import pytest

from kvtier.topology import free_nbytes, numa_nodes, parse_list

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "proc/meminfo",
        f"MemTotal: {8 * GIB >> 10} kB\nMemAvailable: {4 * GIB >> 10} kB\n",
    )
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def limit_v2(root: Path, group: str, most: str, used: int, cache: int = 0) -> None:
    write(root, f"sys/fs/cgroup/{group}/memory.max", most)
    write(root, f"sys/fs/cgroup/{group}/memory.current", str(used))
    write(root, f"sys/fs/cgroup/{group}/memory.stat", f"anon 1\ninactive_file {cache}\n")


@pytest.mark.parametrize(
    ("text", "numbers"), [("0\n", (0,)), ("0-3", (0, 1, 2, 3)), ("0-1,8", (0, 1, 8))]
)
def test_kernel_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_list(text) == numbers


def test_nodes_are_those_online(root: Path) -> None:
    assert numa_nodes(root) == (0,)
    write(root, "sys/devices/system/node/online", "0,2\n")
    assert numa_nodes(root) == (0, 2)


def test_without_a_cgroup_the_machine_counts(root: Path) -> None:
    assert free_nbytes(root) == 4 * GIB


def test_the_tightest_limit_above_the_process_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/pod/engine\n")
    limit_v2(root, "pod/engine", "max", 0)
    limit_v2(root, "pod", str(3 * GIB), 2 * GIB)
    assert free_nbytes(root) == GIB


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
