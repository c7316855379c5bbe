"""CXL memory as Linux shows it: devices, the regions made of them, the node that a region became."""

from pathlib import Path
from typing import NamedTuple

from kvtier.topology.sysfs import ROOT, children, known_node, number, text

_DEVICES = "sys/bus/cxl/devices"
_PERSISTENT = "sys/bus/nd/devices"  # regions that are persistent memory again, under the same names


class CxlDevice(NamedTuple):
    """A memory device (type 3)."""

    name: str
    ram_nbytes: int
    pmem_nbytes: int
    node: int | None  # that the device itself hangs on


class CxlRegion(NamedTuple):
    """Memory of one or several devices, mapped into the address space."""

    name: str
    nbytes: int
    mode: str  # ram or pmem
    committed: bool
    node: int | None  # that it is, or would be, as system RAM


def cxl_devices(root: Path = ROOT) -> tuple[CxlDevice, ...]:
    """List the memory devices that the CXL driver knows."""
    return tuple(
        CxlDevice(
            name=device.name,
            ram_nbytes=number(device / "ram/size") or 0,
            pmem_nbytes=number(device / "pmem/size") or 0,
            node=known_node(number(device / "numa_node")),
        )
        for device in children(root / _DEVICES, "mem*")
    )


def cxl_regions(root: Path = ROOT) -> tuple[CxlRegion, ...]:
    """List the regions that the CXL driver knows; memory that the firmware set up may be none of them."""
    return tuple(
        _region(folder, root / _PERSISTENT / folder.name)
        for folder in children(root / _DEVICES, "region*")
    )


def _region(folder: Path, persistent: Path) -> CxlRegion:
    volatile = children(folder, "dax_region*/dax*/target_node")
    files = volatile or children(persistent, "dax*/dax*/target_node")
    return CxlRegion(
        name=folder.name,
        nbytes=number(folder / "size") or 0,
        mode=text(folder / "mode") or "pmem",  # no file before Linux 6.3, nor another mode
        committed=number(folder / "commit") == 1,
        node=known_node(next(map(number, files), None)),
    )
