"""Every report in a real browser: it draws what it was given, complains of nothing, and loads nothing."""

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from kvtier.measure import report as tiers
from kvtier.measure.fio import Cell, Disk
from kvtier.measure.tiers import Point
from kvtier.page.document import Html, Piece, document, heading, pieces, policy, table
from kvtier.page.plot import PALETTE, Plot, Series, builtins, colours
from tests.page.browser import Tab

NASTY = "</script><script>alert(1)</script><!-- & \u2028 \" '"
INK = """
[...document.querySelectorAll('canvas')].map(each => {
  const pixels = each.getContext('2d').getImageData(0, 0, each.width, each.height).data;
  const seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) seen.add(pixels.slice(i, i + 3).join());
  return [...seen];
})
"""
"""The colours of each canvas."""


def plots() -> list[Piece]:
    line = Series(
        name=NASTY, colour="blue", points=[(0, 1.5), (1, None), (2, float("nan")), (3, 2)]
    )
    dots = Series(
        name="dots",
        colour="red",
        points=[(0.5, 1.0), (1.5, 2.0)],
        draw="dots",
        titles=["one", NASTY],
    )
    parts = [
        Series(name=name, colour=colour, points=[(0, n), (1, 2 * n)], draw="bars")
        for name, colour, n in (("low", "grey", 1000), ("high", "orange", 3000))
    ]
    times = [(1.7e9 + i, i / 10) for i in range(10)]
    return [
        heading(NASTY, NASTY, level=1),
        Plot(title=NASTY, series=[line, dots], unit="seconds", x_label=NASTY),
        Plot(title="bars", series=parts, unit="tokens", categories=["a", NASTY], stacked=True),
        Plot(title="time", series=[Series(name="s", colour="green", points=times)], time=True),
        Plot(title="empty", series=[]),
        table(("a", "b"), [(NASTY, Html("<b>yes</b>"))]),
    ]


@pytest.fixture
def page(tmp_path: Path) -> str:
    file = tmp_path / "page.html"
    file.write_text(document(NASTY, plots()), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_all_is_drawn_and_nothing_is_loaded(tab: Tab, page: str, width: int, dark: bool) -> None:
    tab.open(page, width=width, dark=dark)
    assert tab.requests == [page]
    assert tab.value("document.documentElement.scrollWidth") <= width
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    lines, bars, time, _ = tab.value(INK)
    assert ("74,168,224" if dark else "0,114,178") in lines
    assert (
        {"240,138,60", "107,115,125"} <= {*bars} if dark else {"213,94,0", "154,163,173"} <= {*bars}
    )
    assert ("47,199,154" if dark else "0,158,115") in time


def test_text_of_others_stays_text(tab: Tab, page: str) -> None:
    tab.open(page)
    assert tab.value("document.title") == NASTY
    assert tab.value("document.querySelector('h1').textContent") == NASTY
    assert tab.value("document.scripts.length") == 2
    legends = tab.value("[...document.querySelectorAll('.u-label')].map(each => each.textContent)")
    assert NASTY in legends


def test_the_pointer_shows_values(tab: Tab, page: str) -> None:
    tab.open(page)
    over = "document.querySelectorAll('.u-over')[1].getBoundingClientRect()"
    box = tab.value(f"(() => {{ const b = {over}; return [b.x, b.y, b.width, b.height]; }})()")
    tab.value("scrollTo(0, 0)")
    tab.point(box[0] + box[2] * 0.25, box[1] + box[3] / 2)
    tab.settle()
    shown = tab.value(
        "[...document.querySelectorAll('.plot')[1].querySelectorAll('.u-value')].map(e => e.textContent)"
    )
    assert shown == ["a", "3K tokens", "1K tokens"], "each its own, not the sum"


def test_the_theme_may_change_while_it_is_shown(tab: Tab, page: str) -> None:
    tab.open(page)
    tab.theme(dark=True)
    assert "74,168,224" in tab.value(INK)[0]


def test_the_page_itself_forbids_to_load_and_to_run(tab: Tab, page: str) -> None:
    tab.open(page)
    tab.value(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    tab.value("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a.png'}))")
    assert tab.value("window.ran") is None
    assert tab.requests == [page]
    assert all("Content Security Policy" in error for error in tab.errors)
    assert len(tab.errors) == 2
    tab.errors.clear()


class Live(http.server.BaseHTTPRequestHandler):
    """Answers with the page at first, and then with newer and newer pieces."""

    asked = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/":
            self.wfile.write(document("live", plots(), live_s=0.05).encode())
            return
        Live.asked += 1
        one = Series(name="s", colour="purple", points=[(0.0, 1.0), (1.0, float(Live.asked))])
        text = Html(f"<h1>{Live.asked} times</h1>")
        body: list[Piece] = [text, Plot(title="new", series=[one]), *plots()[2:]]
        self.wfile.write(pieces(body))

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Live) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


def test_a_live_page_shows_what_is_new(tab: Tab, server: str) -> None:
    tab.open(server)
    tab.wait("(document.querySelector('h1').textContent.split(' ')[0] | 0) > 3")
    assert ("163,95,181") in tab.value(INK)[0]
    assert {*tab.requests} == {server, f"{server}pieces.json"}
    tab.open("about:blank")


def test_a_policy_names_the_script_that_is_in_the_page() -> None:
    text = document("t", [])
    assert policy() in text
    assert not re.search(r"<(img|link|script)[^>]*(src|href)=\"?(http|/)", text)


def test_values_are_aligned_and_gaps_stay_gaps() -> None:
    found = builtins(plots()[1])  # type: ignore[arg-type] # it is a plot
    assert found["x"] == [0, 0.5, 1, 1.5, 2, 3]
    assert found["series"][0]["y"] == [1.5, None, None, None, None, 2]  # type: ignore[index]
    assert found["titles"] == ["", "one", "", NASTY, "", ""]


def test_what_all_reports_have_is_of_one_colour() -> None:
    assert colours(["dram", "nvme"]) == {"dram": "blue", "nvme": "orange"}
    many = colours(["lru", "computed", "arc", *map(str, range(20))])
    assert many["computed"] == "grey"
    assert many["lru"] != many["arc"]
    assert {*many.values()} <= {*PALETTE}


def test_uplot_is_as_its_authors_ship_it() -> None:
    folder = files("kvtier.page") / "uplot"
    digest = hashlib.sha256((folder / "uPlot.iife.min.js").read_bytes()).hexdigest()
    assert digest == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert "MIT" in (folder / "LICENSE").read_text()


def test_the_report_of_bench_tiers(tab: Tab, tmp_path: Path) -> None:
    points = [
        Point("nvme", 2 << 20, 8, depth, way, depth / 2, 0.001, 0.002, 1 << 20)
        for depth in (1, 8)
        for way in ("read", "write")
    ]
    disk = Disk([Cell("libaio", "randread", 65536, d, d / 10, 0.001) for d in (1, 8)], [])
    file = tmp_path / "tiers.html"
    file.write_text(tiers.render(points, {"nvme": disk}, "io: {threads: 4}", "here"))
    tab.open(file.as_uri(), width=390)
    assert "213,94,0" in tab.value(INK)[0]
    assert tab.value("document.documentElement.scrollWidth") <= 390
