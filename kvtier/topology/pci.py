"""Which GPU and which NVMe drive hangs where, and on how much of a link."""

from pathlib import Path
from typing import NamedTuple

from kvtier.topology.sysfs import ROOT, children, known_node, number, text

_DEVICES = "sys/bus/pci/devices"
_DISPLAY = (0x0300, 0x0302)  # VGA and 3D controllers; a BMC's VGA is told by its vendor
_GPU_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD"}


class Link(NamedTuple):
    """A PCIe link: giga-transfers per second and lanes, now and at most. Idle devices slow theirs down."""

    speed: float
    width: int
    max_speed: float
    max_width: int

    @property
    def gb_s(self) -> float:
        """Bandwidth of each direction at most, in GB/s: 128b/130b from PCIe 3.0 on, 8b/10b before."""
        return self.max_speed * self.max_width / 8 * (128 / 130 if self.max_speed >= 8 else 0.8)


class Gpu(NamedTuple):
    """A GPU on the PCI bus."""

    address: str  # 0000:17:00.0
    vendor: str
    node: int | None
    link: Link | None


class Drive(NamedTuple):
    """An NVMe controller and the disks behind it."""

    name: str
    model: str
    node: int | None
    link: Link | None  # None: over a network
    disks: tuple[str, ...]


def gpus(root: Path = ROOT) -> tuple[Gpu, ...]:
    """List the GPUs by PCI address."""
    found = []
    for device in children(root / _DEVICES):
        vendor = _GPU_VENDORS.get(number(device / "vendor") or 0)
        if vendor and (number(device / "class") or 0) >> 8 in _DISPLAY:
            node = known_node(number(device / "numa_node"))
            found.append(Gpu(device.name, vendor, node, _link(device)))
    return tuple(found)


def drives(root: Path = ROOT) -> tuple[Drive, ...]:
    """List the NVMe controllers."""
    return tuple(_drive(folder) for folder in children(root / "sys/class/nvme", "nvme*"))


def node_of_pci(address: str, root: Path = ROOT) -> int | None:
    """Return the node of a PCI device such as `0000:17:00.0`; None where the kernel names none."""
    return known_node(number(root / _DEVICES / address.lower() / "numa_node"))


def _drive(folder: Path) -> Drive:
    device = folder / "device"
    node = number(folder / "numa_node")
    return Drive(
        name=folder.name,
        model=text(folder / "model") or "",
        node=known_node(number(device / "numa_node") if node is None else node),
        link=_link(device),
        disks=tuple(disk.name for disk in children(folder, "nvme*n*")),
    )


def _link(device: Path) -> Link | None:
    """Read `32.0 GT/s PCIe` and `16`; a device that is no PCIe device has neither."""
    speeds = [text(device / f"{when}_link_speed") for when in ("current", "max")]
    widths = [number(device / f"{when}_link_width") for when in ("current", "max")]
    try:
        now, most = (float((speed or "").split()[0]) for speed in speeds)
    except (IndexError, ValueError):
        return None
    return Link(now, widths[0] or 0, most, widths[1] or 0) if widths[1] else None
