"""The arena: one rank's slots, tier 0. One anonymous shared mapping that the I/O process inherits.

A memfd has no name in any file system, so nothing of it can outlive the processes that hold it.
"""

import logging
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvtier.errors import ConfigError

logger = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

PAGE = 4096
HUGE_PAGE = 2 << 20
_FREE_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


class Arena:
    """`slots` pieces of `slot_nbytes` bytes (a multiple of 4 KiB) behind one file descriptor.

    Who may touch a slot, and when, is the brain's to say; there is no lock here. Pages are touched, and
    so taken from the system, when a slot is first written.
    """

    def __init__(self, slots: int, slot_nbytes: int) -> None:
        if slot_nbytes % PAGE:
            raise ValueError(f"slot_nbytes {slot_nbytes} is not a multiple of {PAGE}")
        if slots < 1:
            raise ConfigError(
                f"tiers[0].capacity: no room for one chunk of {slot_nbytes} bytes; make it larger"
            )
        self.slots = slots
        self.slot_nbytes = slot_nbytes
        self.nbytes = slots * slot_nbytes
        self.fd, mapping, self.huge = _map(self.nbytes)
        self._bytes: Bytes = np.frombuffer(mapping, dtype=np.uint8)[: self.nbytes]
        self.address: int = self._bytes.ctypes.data

    def slot(self, index: int) -> Bytes:
        """View one slot, shape (slot_nbytes,)."""
        start = index * self.slot_nbytes
        return self._bytes[start : start + self.slot_nbytes]

    def close(self) -> None:
        """Give the descriptor back; the mapping goes with its last view. Idempotent."""
        if self.fd < 0:
            return
        self._bytes = np.empty(0, np.uint8)
        os.close(self.fd)
        self.fd = -1


def _map(nbytes: int) -> tuple[int, mmap.mmap, bool]:
    """Map a memfd on explicit huge pages where enough are free, else ask for transparent ones."""
    huge_nbytes = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
    if _free_huge_pages() * HUGE_PAGE >= huge_nbytes:
        fd = os.memfd_create("kvtier", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        try:
            os.ftruncate(fd, huge_nbytes)
            return fd, mmap.mmap(fd, huge_nbytes), True
        except OSError as exc:
            os.close(fd)
            logger.info("huge pages are free but were refused (%s); using ordinary pages", exc)
    fd = os.memfd_create("kvtier", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, nbytes)
        mapping = mmap.mmap(fd, nbytes)
    except OSError:
        os.close(fd)
        raise
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        logger.debug("the kernel has no transparent huge pages for shared memory")
    return fd, mapping, False


def _free_huge_pages() -> int:
    try:
        return int(_FREE_HUGE_PAGES.read_text())
    except (OSError, ValueError):
        return 0
