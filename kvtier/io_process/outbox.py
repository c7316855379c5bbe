"""What the I/O process still has to say. Any thread adds; the main thread alone sends."""

import contextlib
import os
import threading

from kvtier.io_process.wire import FrameKind, frame
from kvtier.types import OpResult, ScanBatch

_SCAN_NBYTES = 1 << 20


class Outbox:
    """Collect results and encoded scan batches.

    Results are bounded by the operations that the client has pending. A scan waits while more than a
    mebibyte of it is unsent. `fileno` becomes readable when there is something to send.
    """

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._results: list[OpResult] = []
        self._scans: list[bytes] = []
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._wake

    def add(self, result: OpResult) -> None:
        """Answer an operation."""
        with self._room:
            self._results.append(result)
        self.wake()

    def add_scan(self, batch: ScanBatch) -> bool:
        """Report part of a scan; waits for room. False: there will be none, the process leaves."""
        data = frame(FrameKind.SCAN, batch)
        with self._room:
            self._room.wait_for(lambda: self._closed or sum(map(len, self._scans)) < _SCAN_NBYTES)
            if self._closed:
                return False
            self._scans.append(data)
        self.wake()
        return True

    def wake(self) -> None:
        """Make `fileno` readable."""
        os.eventfd_write(self._wake, 1)

    def hush(self) -> None:
        """Make `fileno` quiet; before what it woke for is looked at, so that no later wake is lost."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def take(self) -> bytes:
        """Encode and take out everything."""
        with self._room:
            results, self._results = self._results, []
            scans, self._scans = self._scans, []
            self._room.notify_all()
        head = frame(FrameKind.RESULTS, results) if results else b""
        return head + b"".join(scans)

    def close(self) -> None:
        """Let a waiting scan go."""
        with self._room:
            self._closed = True
            self._room.notify_all()
