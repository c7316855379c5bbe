"""Zeroed memory on chosen NUMA nodes and the largest pages there are: what the arena and the `memory` tier hold."""

import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvtier import topology
from kvtier.memory import placement
from kvtier.memory.placement import HUGE_PAGE, Placement
from kvtier.memory.prefault import Prefault
from kvtier.tier import Bytes
from kvtier.topology.sysfs import children

logger = logging.getLogger(__name__)

_MAX_THREADS = 8


class _Mapped(NamedTuple):
    mapping: mmap.mmap
    fd: int  # -1: private
    huge: bool


class Region:
    """One mapping, bound to `nodes` before its first page is taken; without nodes the kernel chooses.

    A shared one is a memfd, without a name in any file system, for other processes to map; `owner` is whose it
    is, for `regions_of_others`. Memory that
    cannot be bound is used all the same: `refused` says why. Explicit huge pages are all there from the
    start: a cgroup may forbid what the machine has free, and says so at the first touch, with SIGBUS.
    """

    def __init__(
        self, nbytes: int, nodes: Sequence[int] = (), *, shared: bool, owner: str = ""
    ) -> None:
        self.nodes = tuple(nodes)
        name = _name(owner) if shared else ""
        huge = _map_huge(nbytes, self.nodes, name)
        if huge is not None:
            self._take(huge, nbytes)
            if error := self._filled():
                logger.info(
                    "huge pages are free but were refused (%s); using ordinary pages", error
                )
                self.close()
                huge = None
        if huge is None:
            self._take(_map(nbytes, name), nbytes)

    def _take(self, mapped: _Mapped, nbytes: int) -> None:
        self.fd = mapped.fd
        self.huge = mapped.huge
        self.bytes: Bytes = np.frombuffer(mapped.mapping, dtype=np.uint8)[:nbytes]
        self.address: int = self.bytes.ctypes.data
        self.refused = ""
        if self.nodes:
            self.refused = placement.bind(self.address, len(mapped.mapping), self.nodes)

    def _filled(self) -> str:
        """Wait until every page is there; return why one is not, or nothing."""
        threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))
        prefault = Prefault(self.bytes, threads, bound=bool(self.nodes))
        prefault.wait()
        return prefault.error

    def locate(self) -> Placement:
        """Ask the kernel where the pages are, of a large region a sample."""
        if not len(self.bytes):
            return Placement((), 0, "closed")
        return placement.locate(self.address, len(self.bytes))

    def close(self) -> None:
        """Give the descriptor back; the mapping goes with its last view. Idempotent."""
        self.bytes = np.empty(0, np.uint8)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _map_huge(nbytes: int, nodes: Sequence[int], name: str) -> _Mapped | None:
    """Map explicit huge pages where enough are free on the nodes; shared ones have a name."""
    huge_nbytes = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
    if free_huge_nbytes(nodes) < huge_nbytes:
        return None
    try:
        if name:
            return _memfd(huge_nbytes, name, os.MFD_HUGETLB)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
        return _Mapped(mmap.mmap(-1, huge_nbytes, flags), -1, huge=True)
    except OSError as exc:
        logger.info("huge pages are free but were refused (%s); using ordinary pages", exc)
        return None


def _map(nbytes: int, name: str) -> _Mapped:
    """Map ordinary pages, and ask for transparent huge ones."""
    if name:
        mapped = _memfd(nbytes, name, 0)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = _Mapped(mmap.mmap(-1, nbytes, flags), -1, huge=False)
    try:
        mapped.mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        logger.debug("the kernel has no transparent huge pages for this memory")
    return mapped


def _memfd(nbytes: int, name: str, flags: int) -> _Mapped:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | flags)
    try:
        os.ftruncate(fd, nbytes)
        return _Mapped(mmap.mmap(fd, nbytes), fd, huge=flags != 0)
    except OSError:
        os.close(fd)
        raise


def free_huge_nbytes(nodes: Sequence[int]) -> int:
    """Return the bytes of the explicit huge pages that are free on these nodes.

    If `nodes` is empty, every node counts except those of CXL memory, which would be slow.
    """
    return sum(
        pages.free * HUGE_PAGE
        for node in topology.nodes()
        if (node.number in nodes if nodes else not node.memory_only)
        for pages in node.huge_pages
        if pages.page_nbytes == HUGE_PAGE
    )


class Sharing(NamedTuple):
    """A shared region of ordinary memory in another process."""

    nbytes: int
    taken: int  # of these, so many are there already


def regions_of_others(owner: str) -> list[Sharing]:
    """List the owner's shared regions of ordinary memory in other processes.

    What this user may not look at is not seen.
    """
    own = {inode for inode, _ in _regions(Path("/proc/self"), owner)}
    processes = Path("/proc").glob("[0-9]*")
    found = dict(region for process in processes for region in _regions(process, owner))
    return [region for inode, region in found.items() if inode not in own]


def _name(owner: str) -> str:
    return f"kvtier:{owner}" if owner else "kvtier"


def _regions(process: Path, owner: str) -> Iterator[tuple[int, Sharing]]:
    """List the owner's regions that a process holds open, by inode."""
    for link in children(process / "fd"):
        with suppress(OSError):
            if os.readlink(link) == f"/memfd:{_name(owner)} (deleted)":
                stat = os.stat(link)
                if stat.st_blksize < HUGE_PAGE:
                    yield stat.st_ino, Sharing(stat.st_size, stat.st_blocks * 512)
