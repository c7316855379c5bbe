"""The I/O process's main thread sleeps while there is nothing that it can do, and wakes when there is."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import cast

import pytest

from kvtier.io_process.census import Census
from kvtier.io_process.main import Pipe, turn
from kvtier.io_process.outbox import Outbox
from kvtier.io_process.service import Service
from kvtier.types import OpResult, OpStatus
from tests.patience import HANG_S, until


class IdleService:
    """Has nothing queued."""

    waiting = False

    def expire(self) -> None:
        pass


class Loop:
    """Turns in a thread against a worker that does not read."""

    def __init__(self) -> None:
        mine, self.worker = socket.socketpair()
        mine.setblocking(False)
        self.worker.setblocking(False)
        self.outbox = Outbox()
        self.pipe = Pipe(mine)
        self.turns = 0
        self.leaving = False
        self._census = Census(0, [])
        self._thread = threading.Thread(target=self._run)

    def clog(self) -> None:
        """Have more to send than the socket takes."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.pipe.sock.send(bytes(1 << 16))
        self.pipe.unsent = b"unsent"

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> bool:
        """Do what SIGTERM does, and say whether it ended."""
        self.leaving = True
        self.outbox.wake()
        self._thread.join(HANG_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        service = cast("Service", IdleService())
        while not self.leaving and turn(self.pipe, self.outbox, service, self._census):
            self.turns += 1


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.worker.close()
    made.pipe.sock.close()


def test_a_worker_that_does_not_read_costs_no_core(loop: Loop) -> None:
    loop.clog()
    loop.start()
    for op in range(3):
        loop.outbox.add(OpResult(0, op, OpStatus.OK))
    time.sleep(0.2)
    assert loop.turns <= 10
    assert loop.leave()


def test_what_waited_is_sent_when_the_worker_reads_again(loop: Loop) -> None:
    loop.clog()
    loop.start()
    loop.outbox.add(OpResult(0, 1, OpStatus.OK))
    seen = bytearray()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            seen.extend(loop.worker.recv(1 << 20))

    until(lambda: seen.partition(b"unsent")[2], "the worker is sent what waited", read)
    assert loop.leave()
