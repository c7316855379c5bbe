"""One connection to a server that speaks RESP2, as Redis and Valkey do: values go from and into buffers as they are."""

import os
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from kvtier.tier import Bytes

Reply = int | bytes | None

_MOST_LINE = 1 << 16
_IOV = 64  # buffers of one call to the system


class Server(NamedTuple):
    """Where a server is and how to be let in."""

    host: str  # a path: of a socket of this machine
    port: int
    user: str = ""
    password: str = ""
    database: int = 0
    tls: ssl.SSLContext | None = None


class Refused(Exception):
    """The server answered with an error, in its own words; the connection is whole."""


class Connection:
    """One connection. One thread at a time; whatever it raises but `Refused` leaves it unusable.

    Every call has the whole of `timeout_s`, however slowly bytes trickle.

    Raises:
        OSError: the connection, or the time, is over; `ValueError`: that was no RESP.
    """

    def __init__(self, server: Server, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._rest = bytearray()
        self.open = True
        self._socket = self._connect(server)
        try:
            if server.password:
                user = [server.user.encode()] if server.user else []
                self.call(b"AUTH", *user, server.password.encode())
            if server.database:
                self.call(b"SELECT", b"%d" % server.database)
        except BaseException:
            self.close()
            raise

    def call(self, *words: bytes) -> Reply:
        """Ask, and return the answer."""
        self._begin()
        self._send([_packed(words)])
        return self._reply()

    def settings(self, name: bytes) -> bytes:
        """Return one setting of the server."""
        self._begin()
        self._send([_packed((b"CONFIG", b"GET", name))])
        kind, line = self._line()
        self._refuse(kind, line)
        found = [self._reply() for _ in range(int(line))]
        return found[1] if len(found) == 2 and isinstance(found[1], bytes) else b""

    def set(self, key: bytes, bufs: Sequence[Bytes]) -> Reply:
        """Write a value that is in several buffers."""
        self._begin()
        head = _packed((b"SET", key), more=1) + b"$%d\r\n" % sum(map(len, bufs))
        self._send([head, *(memoryview(buf) for buf in bufs), b"\r\n"])
        return self._reply()

    def get(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        """Fill buffers with the value and return its length, 0 where there is none.

        Of one that is longer than the buffers the rest is not read: the connection is closed.
        """
        self._begin()
        self._send([_packed((b"GET", key))])
        kind, line = self._line()
        if kind != b"$":
            self._refuse(kind, line)
            raise ValueError("GET was not answered with a value")
        nbytes = int(line)
        if nbytes <= 0:
            if not nbytes:
                self._take(bytearray(2))
            return 0
        left = nbytes
        for buf in bufs:
            self._take(memoryview(buf)[: min(len(buf), left)])
            left -= min(len(buf), left)
        if left:
            self.close()
        else:
            self._take(bytearray(2))
        return nbytes

    def close(self) -> None:
        """Close it; idempotent."""
        self.open = False
        with suppress(OSError):
            self._socket.close()

    def _connect(self, server: Server) -> socket.socket:
        if server.host.startswith("/"):
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(self._timeout_s)
            made.connect(server.host)
            return made
        made = socket.create_connection((server.host, server.port), self._timeout_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server.tls is None:
            return made
        return server.tls.wrap_socket(made, server_hostname=server.host)

    def _begin(self) -> None:
        self._until = time.monotonic() + self._timeout_s
        if self._rest:
            raise ConnectionResetError("the server said more than it was asked")

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server did not answer in time")
        self._socket.settimeout(left)

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        views = [memoryview(part) for part in parts if len(part)]
        while views:
            self._wait()
            if isinstance(self._socket, ssl.SSLSocket):  # which has no call for several
                n = self._socket.send(views[0])
            else:
                n = self._socket.sendmsg(views[:_IOV])
            while views and n >= len(views[0]):
                n -= len(views.pop(0))
            if n:
                views[0] = views[0][n:]

    def _take(self, into: "bytearray | memoryview[int]") -> None:
        """Fill `into`: first with what came behind the last line."""
        view = memoryview(into)
        n = min(len(view), len(self._rest))
        view[:n] = self._rest[:n]
        del self._rest[:n]
        while n < len(view):
            self._wait()
            got = self._socket.recv_into(view[n:])
            if not got:
                raise ConnectionResetError("the server closed the connection")
            n += got

    def _line(self) -> tuple[bytes, bytes]:
        """Read one line: what kind of answer it begins, and the rest of it."""
        while (end := self._rest.find(b"\r\n")) < 0:
            if len(self._rest) > _MOST_LINE:
                raise ValueError("a line without an end")
            self._wait()
            got = self._socket.recv(64)
            if not got:
                raise ConnectionResetError("the server closed the connection")
            self._rest += got
        line = bytes(self._rest[:end])
        del self._rest[: end + 2]
        return line[:1], line[1:]

    def _reply(self) -> Reply:
        kind, line = self._line()
        self._refuse(kind, line)
        if kind == b"+":
            return line
        if kind == b":":
            return int(line)
        if kind != b"$":
            raise ValueError(f"an answer that begins with {kind!r}")
        nbytes = int(line)
        if nbytes < 0:
            return None
        if nbytes > _MOST_LINE:
            raise ValueError(f"an answer of {nbytes} bytes")
        body = bytearray(nbytes + 2)
        self._take(body)
        return bytes(body[:-2])

    def _refuse(self, kind: bytes, line: bytes) -> None:
        if kind == b"-":
            raise Refused(line.decode(errors="replace"))


def _packed(words: Sequence[bytes], more: int = 0) -> bytes:
    head = b"*%d\r\n" % (len(words) + more)
    return head + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def password_of(variable: str) -> str | None:
    """Return the password in an environment variable: None where it is not set, nothing where no variable is named."""
    return os.environ.get(variable) if variable else ""
