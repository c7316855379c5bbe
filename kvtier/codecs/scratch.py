"""Working memory of the codecs: each thread has its own, taken when first used and kept."""

import threading

import numpy as np

from kvtier.codec import Bytes


class Scratch(threading.local):
    """Buffers by number; their contents hold until the same thread asks for the same number again."""

    def __init__(self) -> None:
        self._buffers: dict[int, Bytes] = {}

    def room(self, number: int, nbytes: int) -> Bytes:
        """Return `nbytes` bytes of buffer `number`, which grows to the largest that was asked for."""
        buffer = self._buffers.get(number)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._buffers[number] = np.empty(nbytes, np.uint8)
        return buffer[:nbytes]
