"""Page-aligned scratch memory of the I/O threads: each has its own, made once."""

import mmap
import os
import threading
from typing import NamedTuple

import numpy as np

from kvtier.tier import Bytes
from kvtier.types import PAGE


class ThreadBuffers(NamedTuple):
    """Buffers of one thread, all page-aligned."""

    header: Bytes  # one page
    tail: Bytes  # one page
    bounce: Bytes  # a whole slot: encoded payloads on their way


class BufferPool(threading.local):
    """Hand every thread its own ThreadBuffers; at most one slot per thread, taken when first used."""

    def __init__(self, slot_nbytes: int) -> None:
        pages = aligned(2 * PAGE)
        self.mine = ThreadBuffers(pages[:PAGE], pages[PAGE:], aligned(slot_nbytes))


def aligned(nbytes: int) -> Bytes:
    """Map fresh zeroed memory, page-aligned."""
    return np.frombuffer(mmap.mmap(-1, nbytes), dtype=np.uint8)


class ArenaView:
    """The worker's arena, mapped from the descriptor that this process inherited."""

    def __init__(self, fd: int, nbytes: int, slot_nbytes: int) -> None:
        if slot_nbytes % PAGE:
            raise ValueError(f"slot_nbytes {slot_nbytes} is not a multiple of {PAGE}")
        self._slot_nbytes = slot_nbytes
        self._slots = nbytes // slot_nbytes
        mapping = mmap.mmap(fd, os.fstat(fd).st_size)
        self._bytes: Bytes = np.frombuffer(mapping, dtype=np.uint8)

    def view(self, slot: int) -> Bytes:
        """View one whole slot."""
        if not 0 <= slot < self._slots:
            raise ValueError(f"slot {slot} of {self._slots}")
        return self._bytes[slot * self._slot_nbytes : (slot + 1) * self._slot_nbytes]
