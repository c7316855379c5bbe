"""Page-aligned scratch memory of the I/O threads: each has its own, made once."""

import mmap
import os
import threading

import numpy as np

from kvtier.tier import Bytes
from kvtier.types import PAGE


class ThreadBuffers(threading.local):
    """Buffers that every thread has of its own, all page-aligned; taken when first used."""

    def __init__(self, slot_nbytes: int) -> None:
        self.header = aligned(PAGE)
        self.tail = aligned(PAGE)
        self.bounce = aligned(slot_nbytes)  # encoded payloads on their way


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
