"""Machines as the kernel shows them in /sys and /proc, written out under a directory of the test.

The layout is that of Linux 6.x: devices below /sys/devices, with links from the buses and classes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

GIB = 1 << 30

LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}
"""The configuration of a model."""


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


def link(root: Path, path: str, target: str) -> None:
    """Link as the kernel does, relatively."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(os.path.relpath(root / target, (root / path).parent))


def nodes(root: Path, cpus: Sequence[str], gib: Sequence[int], far: int = 21) -> None:
    """NUMA nodes with these processors and so much memory, equally far from each other."""
    base = "sys/devices/system/node"
    write(root, f"{base}/online", f"0-{len(cpus) - 1}" if len(cpus) > 1 else "0")
    for i, (listed, size) in enumerate(zip(cpus, gib, strict=True)):
        node, kib = f"{base}/node{i}", size << 20
        write(root, f"{node}/cpulist", listed)
        write(
            root, f"{node}/distance", " ".join(str(10 if i == j else far) for j in range(len(cpus)))
        )
        write(
            root,
            f"{node}/meminfo",
            f"Node {i} MemTotal:       {kib} kB\nNode {i} MemFree:        {kib // 2} kB\n"
            f"Node {i} HugePages_Total:     4",
        )
        for name, n in (("2048kB", 4), ("1048576kB", 0)):
            write(root, f"{node}/hugepages/hugepages-{name}/nr_hugepages", n)
            write(root, f"{node}/hugepages/hugepages-{name}/free_hugepages", n // 2)
    total = sum(gib) << 20
    write(root, "proc/meminfo", f"MemTotal: {total} kB\nMemAvailable: {total // 2} kB")


def pci(
    root: Path, address: str, *, kind: str, vendor: str, node: int, speed: int = 32, width: int = 16
) -> str:
    """A PCIe device below a root port; its link is idle, at 2.5 GT/s."""
    device = f"sys/devices/pci{address[:7]}/{address[:8]}01.0/{address}"
    values = {
        "class": kind,
        "vendor": vendor,
        "numa_node": node,
        "current_link_speed": "2.5 GT/s PCIe",
        "current_link_width": width,
        "max_link_speed": f"{speed}.0 GT/s PCIe",
        "max_link_width": 16 if kind == "0x030200" else 4,
    }
    for name, value in values.items():
        write(root, f"{device}/{name}", value)
    link(root, f"sys/bus/pci/devices/{address}", device)
    return device


def nvme(root: Path, index: int, node: int, address: str) -> None:
    device = pci(root, address, kind="0x010802", vendor="0x144d", node=node, width=4)
    name = f"nvme{index}"
    controller = f"{device}/nvme/{name}"
    write(root, f"{controller}/model", "SAMSUNG MZQL23T8HCLS-00A07                ")
    write(root, f"{controller}/{name}n1/queue/rotational", 0)
    link(root, f"{controller}/device", device)
    link(root, f"sys/class/nvme/{name}", controller)


def cgroup(root: Path, limit: int | str, used: int) -> None:
    """A container's cgroup v2: its own directory is the root of what it sees."""
    write(root, "proc/self/cgroup", "0::/")
    write(root, "sys/fs/cgroup/memory.max", limit)
    write(root, "sys/fs/cgroup/memory.current", used)
    write(root, "sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 0")


def one_socket(root: Path) -> Path:
    nodes(root, ["0-15"], [64])
    nvme(root, 0, -1, "0000:01:00.0")
    pci(root, "0000:02:00.0", kind="0x030000", vendor="0x1a03", node=-1)  # a BMC
    return root


def two_sockets(root: Path) -> Path:
    """Four GPUs, two on each socket, and a drive on the second."""
    nodes(root, ["0-31,64-95", "32-63,96-127"], [512, 512])
    for i, bus in enumerate(("17", "2a", "9c", "c9")):
        pci(root, f"0000:{bus}:00.0", kind="0x030200", vendor="0x10de", node=i // 2)
    nvme(root, 0, 1, "0000:e1:00.0")
    return root


def cxl(root: Path) -> Path:
    """One socket and 128 GiB of CXL memory that is online as node 1."""
    nodes(root, ["0-15", ""], [64, 128], far=14)
    memory = "sys/devices/pci0000:0c/0000:0c:00.0/0000:0d:00.0/mem0"
    write(root, f"{memory}/ram/size", hex(128 * GIB))
    write(root, f"{memory}/pmem/size", "0x0")
    write(root, f"{memory}/numa_node", 0)
    link(root, "sys/bus/cxl/devices/mem0", memory)
    region = "sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0"
    for name, value in {"size": hex(128 * GIB), "mode": "ram", "commit": 1}.items():
        write(root, f"{region}/{name}", value)
    write(root, f"{region}/dax_region0/dax0.0/target_node", 1)
    link(root, "sys/bus/cxl/devices/region0", region)
    near = "sys/devices/system/node/node1/access0/initiators"
    write(root, f"{near}/read_latency", 240)
    write(root, f"{near}/read_bandwidth", 28000)
    return root


def cxl_persistent(root: Path) -> Path:
    """Three nodes and 256 MiB of persistent CXL memory, half of it online as node 3: Linux 6.1 in QEMU 7.2."""
    nodes(root, ["0", "1", "", ""], [2, 1, 1, 1], far=20)
    memory = "sys/devices/pci0000:0c/0000:0c:00.0/0000:0d:00.0/mem0"
    write(root, f"{memory}/ram/size", "0x0")
    write(root, f"{memory}/pmem/size", hex(GIB >> 2))
    write(root, f"{memory}/numa_node", -1)
    link(root, "sys/bus/cxl/devices/mem0", memory)
    top = "sys/devices/platform/ACPI0017:00/root0"
    region = f"{top}/decoder0.0/region0"
    for name, value in {"size": hex(GIB >> 2), "commit": 1, "target0": "decoder2.0"}.items():
        write(root, f"{region}/{name}", value)
    write(root, f"{region}/pmem_region0/devtype", "cxl_pmem_region")
    link(root, "sys/bus/cxl/devices/region0", region)
    persistent = f"{top}/nvdimm-bridge0/ndbus0/region0"
    for folder in ("", "namespace0.0/", "dax0.0/", "dax0.0/dax0.0/"):
        write(root, f"{persistent}/{folder}target_node", 3)
    link(root, "sys/bus/nd/devices/region0", persistent)
    return root


def sub_numa(root: Path) -> Path:
    """One socket that shows four nodes; the drive and the GPU belong to one of them each."""
    nodes(root, ["0-7", "8-15", "16-23", "24-31"], [32, 32, 32, 32], far=12)
    pci(root, "0000:41:00.0", kind="0x030200", vendor="0x10de", node=2, width=8)
    nvme(root, 0, 3, "0000:61:00.0")
    return root


def container(root: Path) -> Path:
    """Two sockets behind a cgroup's limit of 32 GiB, of which 8 are used."""
    two_sockets(root)
    cgroup(root, 32 * GIB, 8 * GIB)
    return root
