"""A real Redis server of a test's own, on this machine: started, stopped, killed, emptied, filled."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest

from kvtier.tiers.resp import Connection, Reply, Server
from tests.patience import HANG_S


class RedisServer:
    """One server; `url` stays the same when it is started again, and then it is empty."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.password = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        command = ["redis-server", *settings, "--dir", str(self._folder), *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + HANG_S
        while True:
            try:
                self.call(b"PING")
            except OSError:
                assert time.monotonic() < until, "the server does not start"
                time.sleep(0.02)
            else:
                return

    def call(self, *words: bytes) -> Reply:
        """Ask it something, past any tier."""
        made = Connection(Server("127.0.0.1", self.port, password=self.password), HANG_S)
        try:
            return made.call(*words)
        finally:
            made.close()

    def records(self) -> list[bytes]:
        """List the names of all records."""
        script = b"return cjson.encode(redis.call('DBSIZE'))"
        assert self.call(b"EVAL", script, b"0") is not None
        listed = b"local s = '' for _, k in ipairs(redis.call('KEYS', '*:r*')) do s = s .. #k .. ':' .. k end return s"
        joined = self.call(b"EVAL", listed, b"0")
        assert isinstance(joined, bytes)
        names = []
        while joined:
            size, _, joined = joined.partition(b":")
            names.append(joined[: int(size)])
            joined = joined[int(size) :]
        return names

    def kill(self) -> None:
        """End it at once."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it answer nothing, while its connections stand."""
        assert self.process
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self.process
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Start a server; the test is skipped where there is no redis-server."""
    if which("redis-server") is None:
        pytest.skip("there is no redis-server; apt-get install redis-server")
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
