"""The live page: a small HTTP server on loopback, for this machine's own browser alone."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from kvtier.errors import KvtierError, reason
from kvtier.page.document import document, pieces, policy
from kvtier.top.history import History
from kvtier.top.report import TITLE, body

HOST = "127.0.0.1"
_TYPES = {"/": "text/html; charset=utf-8", "/pieces.json": "application/json"}


class LivePage(ThreadingHTTPServer):
    """Serves what the histories hold; `serve_forever` in a thread of its own."""

    daemon_threads = True

    def __init__(self, port: int, histories: list[History], interval_s: float) -> None:
        """Raise a KvtierError where the port is taken."""
        self.histories = histories
        self.interval_s = interval_s
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as exc:
            raise KvtierError(
                f"port {port} of {HOST}: {reason(exc)}; --port takes another"
            ) from exc

    @property
    def url(self) -> str:
        """What a browser is to open."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers two paths, and only who asks for this machine by its own name.

    A page of another site whose name was pointed at loopback says that name.
    """

    server: LivePage
    timeout = 10
    server_version = "kvtier"
    sys_version = ""
    names: ClassVar = frozenset({HOST, "localhost"})

    def do_GET(self) -> None:
        """Answer with the page, or with its pieces."""
        name, _, port = self.headers.get("Host", "").rpartition(":")
        if name not in self.names or port != str(self.server.server_port):
            self._answer(403, "text/plain", b"kvtier top: not by this name\n")
        elif self.path not in _TYPES:
            self._answer(404, "text/plain", b"kvtier top: only / is here\n")
        else:
            shown = body(self.server.histories)
            text = (
                document(TITLE, shown, columns=True, live_s=self.server.interval_s).encode()
                if self.path == "/"
                else pieces(shown)
            )
            self._answer(200, _TYPES[self.path], text)

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal has better use."""

    def _answer(self, status: int, kind: str, text: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(text)),
            "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)
