"""Fill memory in from a few threads, so that nobody waits for its first touch later."""

import contextlib
import itertools
import logging
import os
import threading

from kvtier.memory import placement
from kvtier.tier import Bytes

logger = logging.getLogger(__name__)

_PIECE = 16 << 20  # a few milliseconds, in which whoever maps memory in this process waits


class Prefault:
    """Touch every page of a region in the background; its owner uses it meanwhile.

    The threads spend their time in the kernel, without the GIL. They keep the mapping until they end.
    """

    def __init__(self, memory: Bytes, threads: int, *, bound: bool) -> None:
        """Start; `bound` memory has nodes of its own, and may be filled in from any core."""
        self._bytes = memory
        self._bound = bound
        self._next = itertools.count()
        self._stopped = False
        self.error = ""
        self._threads = [
            threading.Thread(target=self._work, name=f"prefault-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until every page is there."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Leave the rest, after the pieces in hand; idempotent."""
        self._stopped = True
        self.wait()

    def _work(self) -> None:
        if self._bound:
            with contextlib.suppress(OSError):  # the engine's main thread may have one core only
                os.sched_setaffinity(0, range(os.cpu_count() or 1))
        total = len(self._bytes)
        for piece in self._next:
            start = piece * _PIECE
            if start >= total or self._stopped or self.error:
                return
            nbytes = min(_PIECE, total - start)
            if error := placement.populate(self._bytes.ctypes.data + start, nbytes):
                self.error = error  # only ever set: another thread's piece may still succeed
                logger.info("memory is not filled in ahead: %s", error)
