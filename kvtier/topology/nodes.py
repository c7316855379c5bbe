"""NUMA nodes: their processors, their memory, how far they are from each other."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from kvtier.topology.sysfs import ROOT, children, number, parse_list, text

_NODES = "sys/devices/system/node"


class HugePages(NamedTuple):
    """The explicit huge pages of one size on one node."""

    page_nbytes: int
    total: int
    free: int


class Node(NamedTuple):
    """One NUMA node as the kernel shows it."""

    number: int
    cpus: tuple[int, ...]
    nbytes: int
    free_nbytes: int
    distances: tuple[int, ...]  # to each node that is online, in order; 10 is here
    huge_pages: tuple[HugePages, ...]
    latency_ns: int | None  # of reads, as the firmware says; seldom there
    bandwidth_mb_s: int | None  # of reads, from its best initiator, as the firmware says

    @property
    def memory_only(self) -> bool:
        """Whether it has memory and no processor: CXL memory, or another GPU's."""
        return not self.cpus and self.nbytes > 0


def numa_nodes(root: Path = ROOT) -> tuple[int, ...]:
    """List the NUMA nodes that are online; a kernel without NUMA has node 0."""
    online = text(root / _NODES / "online")
    return parse_list(online) if online else (0,)


def nodes(root: Path = ROOT) -> tuple[Node, ...]:
    """Describe every node that is online; nothing where the kernel shows none."""
    folders = (root / _NODES / f"node{n}" for n in numa_nodes(root))
    return tuple(_node(folder) for folder in folders if folder.is_dir())


def node_of_cpus(cpus: Collection[int], root: Path = ROOT) -> int | None:
    """Return the node that has all of these processors; None where no single one has."""
    for node in nodes(root):
        if cpus and set(cpus) <= set(node.cpus):
            return node.number
    return None


def _node(folder: Path) -> Node:
    memory = _memory(folder / "meminfo")
    near = folder / "access0/initiators"
    return Node(
        number=int(folder.name.removeprefix("node")),
        cpus=parse_list(text(folder / "cpulist") or ""),
        nbytes=memory.get("MemTotal", 0),
        free_nbytes=memory.get("MemFree", 0),
        distances=tuple(map(int, (text(folder / "distance") or "").split())),
        huge_pages=tuple(map(_huge_pages, children(folder / "hugepages", "hugepages-*kB"))),
        latency_ns=number(near / "read_latency"),
        bandwidth_mb_s=number(near / "read_bandwidth"),
    )


def _memory(meminfo: Path) -> dict[str, int]:
    """Read lines like `Node 0 MemTotal: 17 kB` into bytes by name."""
    found = {}
    for line in (text(meminfo) or "").splitlines():
        words = line.split()
        if len(words) == 5 and words[4] == "kB":
            found[words[2].rstrip(":")] = int(words[3]) << 10
    return found


def _huge_pages(folder: Path) -> HugePages:
    size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) << 10
    total, free = (number(folder / name) or 0 for name in ("nr_hugepages", "free_hugepages"))
    return HugePages(size, total, free)
