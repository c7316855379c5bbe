"""`kvtier top --html` and `--serve`: what is recorded, who may see it, and what a real browser shows of it."""

import http.client
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvtier.errors import KvtierError
from kvtier.page.document import document
from kvtier.page.plot import Plot
from kvtier.top import history
from kvtier.top.history import History
from kvtier.top.live import LivePage
from kvtier.top.report import body
from kvtier.top.scrape import Scrape, read
from tests.interrupts import heeded
from tests.page.browser import Tab
from tests.patience import HANG_S, until
from tests.top.test_top import page

NASTY = "<script>alert(1)</script>"


def looking(looks: int, address: str = "here", eio: int = 0) -> History:
    """Look so often at a server that has a prompt more each time, a second apart."""
    numbers = iter(range(1, looks + 1))

    def fetch(_: str) -> Scrape:
        number = next(numbers)
        return read(page(number, eio=eio))._replace(at=float(number))

    seen = History(address, fetch)
    for _ in range(looks):
        seen.look()
    return seen


def plots(*seen: History) -> dict[str, Plot]:
    return {each.title: each for each in body(seen) if isinstance(each, Plot)}


def test_steps_are_what_happened_between_two_looks() -> None:
    tokens = plots(looking(4))["Prompt tokens by where their KV came from"]
    of = {each.name: [y for _, y in each.points] for each in tokens.series}
    assert of == {
        "hbm": [200.0] * 3,
        "dram": [300.0] * 3,
        "nvme": [100.0] * 3,
        "computed": [400.0] * 3,
    }
    worth = plots(looking(4))["What hits are worth"]
    assert [[y for _, y in each.points] for each in worth.series] == [[20, 40, 60], [2, 4, 6]]


def test_old_looks_get_coarse_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_LOOKS", 8)
    seen = looking(100)
    assert len(seen.steps) < 8
    assert sum(step.facts.tokens["computed"] for step in seen.steps) == 99 * 400
    recorded = seen.recorded()
    assert recorded is not None
    assert recorded.seconds == 99
    assert sum(step.facts.seconds for step in seen.steps) == 99


def test_a_server_that_does_not_answer_keeps_what_was_seen() -> None:
    seen = looking(3, NASTY)

    def gone(_: str) -> Scrape:
        raise KvtierError(f"{NASTY}: gone")

    seen._fetch = gone
    seen.look()
    assert seen.facts() is None
    text = document("t", body([seen]))
    assert NASTY not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: gone" in text
    assert len(plots(seen)) == 9


def test_before_the_second_look_the_page_says_so() -> None:
    assert plots(looking(1)) == {}
    assert "one look is not enough" in document("t", body([looking(1)]))


@contextmanager
def live(*seen: History) -> Iterator[LivePage]:
    with LivePage(0, [*seen], 0.1) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example:{port}", 403),
        ("localhost", 403),
        ("localhost:1", 403),
        ("", 403),
    ],
)
def test_only_this_machine_by_its_own_name_is_answered(host: str, status: int) -> None:
    with live(looking(2)) as server:
        asked = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=HANG_S)
        for path in ("/", "/pieces.json"):
            asked.request("GET", path, headers={"Host": host.format(port=server.server_port)})
            answer = asked.getresponse()
            text = answer.read()
            assert answer.status == status
            assert (b"nvme" in text) == (status == 200)
            assert "Access-Control-Allow-Origin" not in answer.headers
        asked.close()


def test_nothing_else_is_there_and_it_is_on_loopback_alone() -> None:
    with live(looking(2)) as server:
        assert server.server_address[0] == "127.0.0.1"
        asked = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=HANG_S)
        asked.request("GET", "/../etc/passwd")
        assert asked.getresponse().status == 404
        asked.close()
        with pytest.raises(KvtierError, match=r"port \d+ of 127\.0\.0\.1: Address already in use"):
            LivePage(server.server_port, [], 1.0)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_live_page_in_a_browser(tab: Tab, width: int, dark: bool) -> None:
    seen, other = looking(3, eio=5), looking(2)
    with live(seen, other) as server:
        tab.open(server.url, width=width, dark=dark)
        assert tab.value("document.querySelectorAll('canvas').length") == 18
        assert tab.value("document.documentElement.scrollWidth") <= width
        seen._fetch = lambda _: read(page(1000))._replace(at=1000.0)
        seen.look()
        tab.wait("document.querySelector('main').textContent.includes('999k prompt tokens')")
        assert tab.value("document.querySelectorAll('canvas').length") == 18
        assert {url.removeprefix(server.url) for url in tab.requests} == {"", "pieces.json"}
        tab.open("about:blank")


class Growing(ThreadingHTTPServer):
    """A server with a prompt more at each look."""

    asked = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Growing

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(page(self.server.asked).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def growing() -> Iterator[Growing]:
    with Growing(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "kvtier.cli", "top", *arguments]
        with heeded():
            one = subprocess.Popen(
                command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        started.append(one)
        return one

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_a_window_is_written_as_one_file(
    start: Start, growing: Growing, tmp_path: Path, tab: Tab
) -> None:
    command = start(
        growing.address, "127.0.0.1:9", "--html", "top.html", "--for", "1s", "--interval", "0.2"
    )
    said, failed = command.communicate(timeout=HANG_S)
    assert (said, failed, command.returncode) == ("report: top.html\n", "", 0)
    file = (tmp_path / "top.html").as_uri()
    tab.open(file)
    assert tab.requests == [file]
    assert tab.value("document.querySelectorAll('canvas').length") == 9
    assert "127.0.0.1:9/metrics" in tab.value("document.querySelector('main').textContent")


def test_an_interrupt_ends_the_recording_and_it_is_written(
    start: Start, growing: Growing, tmp_path: Path
) -> None:
    command = start(growing.address, "--html", "top.html", "--interval", "0.2")
    until(lambda: growing.asked > 5, "some looks")
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=HANG_S)
    assert command.returncode == 0
    assert "Prompt tokens by where" in (tmp_path / "top.html").read_text()


def test_of_nobody_nothing_is_written(start: Start, tmp_path: Path) -> None:
    command = start("127.0.0.1:9", "--html", "top.html", "--for", "0.3s", "--interval", "0.2")
    _, failed = command.communicate(timeout=HANG_S)
    assert command.returncode == 1
    assert failed.startswith("kvtier: http://127.0.0.1:9/metrics: ")
    assert failed.endswith("top.html is not written\n")
    assert not (tmp_path / "top.html").exists()


def test_serve_says_where_and_ends_in_time(start: Start, growing: Growing) -> None:
    command = start(growing.address, "--serve", "--port", "0", "--for", "1s", "--interval", "0.2")
    assert command.stdout is not None
    line = command.stdout.readline()
    port = int(line.removeprefix("http://127.0.0.1:").partition("/")[0])
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    asked.request("GET", "/")
    assert asked.getresponse().status == 200
    asked.close()
    assert command.wait(HANG_S) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--html", "/nowhere/a.html"), "/nowhere/a.html: cannot be written"),
        (("--html", "a.html", "--for", "soon"), "--for: "),
        (("--html", "a.html", "--serve"), "one of them at a time"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    start: Start, options: tuple[str, ...], said: str
) -> None:
    command = start("127.0.0.1:9", *options)
    _, failed = command.communicate(timeout=HANG_S)
    assert command.returncode == 1
    assert said in failed
