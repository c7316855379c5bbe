"""The I/O process as its worker sees it: started, its pipe, its end."""

import os
import select
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from kvtier.io_process import system
from kvtier.io_process.wire import FrameBuffer, FrameKind, IoSetup, frame

_CHUNK = 1 << 18
_READ_AHEAD = 1 << 20
_KILL_S = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """One I/O process. Nothing here blocks but the constructor, a few milliseconds, `wait` and `leave`."""

    def __init__(self, setup: IoSetup, arena_fd: int) -> None:
        self._sock, theirs = socket.socketpair()
        try:
            # No preexec_fn, so that no copy of the worker's memory map is made: vfork, then exec.
            fds = (theirs.fileno(), arena_fd)
            self._process = subprocess.Popen(
                [sys.executable, "-Pm", "kvtier.io_process.main", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env=system.environment(),
            )
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._sock.setblocking(False)
        self.inbox = FrameBuffer()
        self.broken = False
        self.killed = False
        self.unsent = bytearray(frame(FrameKind.SETUP, setup))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def processor_seconds(self) -> float | None:
        """Return the processor time of all its threads; None if it is gone."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        ticks = stat.rpartition(")")[2].split()[11:13]  # in its own code, in the system's
        return sum(map(int, ticks)) / _TICKS

    def wait(self, timeout_s: float) -> None:
        """Wait until something comes in, or the pipe's end."""
        poll = select.poll()  # select() refuses descriptors above 1023, which a worker may have
        poll.register(self._sock, select.POLLIN)
        poll.poll(1000 * timeout_s)

    def send(self) -> None:
        """Send what goes without waiting; `broken` is set when the other end is gone."""
        while self.unsent and not self.broken:
            try:
                n = self._sock.send(self.unsent)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return
            del self.unsent[:n]

    def receive(self) -> None:
        """Take what came in into `inbox`, a bounded amount; `broken` is set at the end of the pipe."""
        while len(self.inbox) < _READ_AHEAD:
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.broken = True
                return
            self.inbox.feed(data)

    def kill(self) -> None:
        """End it now; `reaped` says when it is gone."""
        self.killed = True
        self._process.kill()

    def reaped(self) -> bool:
        """Whether it is gone for good: from then on nothing of it reads or writes the arena."""
        return self._process.poll() is not None

    def leave(self, timeout_s: float) -> None:
        """Close the pipe and wait until it left, then kill it."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
            return
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_S)

    def close(self) -> None:
        """Give the pipe's descriptor back."""
        self._sock.close()
