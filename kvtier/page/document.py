"""A page as one HTML file: its style, its scripts and its numbers are in it, and its policy forbids to load anything."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files

import msgspec

from kvtier.page.plot import Plot, builtins


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Piece = Html | Plot


def document(
    title: str, body: Iterable[Piece], *, columns: bool = False, live_s: float = 0.0
) -> str:
    """Write a whole page.

    Args:
        columns: plots stand side by side where there is room.
        live_s: so often the page asks its server for its pieces, at `pieces.json` beside it; 0: never.
    """
    body = list(body)
    shown = "".join(map(_placed, range(len(body)), body))
    data = _safe(pieces(body, plots_only=True))
    kind = ' class="columns"' if columns else ""
    live = f' data-live="{live_s:g}"' if live_s else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        f'<link rel="icon" href="data:,"><style>{_style()}</style></head>'
        f"<body{live}><main{kind}>{shown}</main><noscript>The plots need JavaScript.</noscript>"
        f'<script type="application/json" id="pieces">{data}</script>'
        f"<script>{_script()}</script></body></html>\n"
    )


def pieces(body: Iterable[Piece], *, plots_only: bool = False) -> bytes:
    """Write the pieces as JSON: a text of HTML, or the object of a plot."""
    each = [
        builtins(one) if isinstance(one, Plot) else None if plots_only else str(one) for one in body
    ]
    return msgspec.json.encode(each)


def policy() -> str:
    """Write the Content-Security-Policy of every page: its own script, its own server, nothing else."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Write a table; what is no Html is escaped."""
    lines = ["".join(f"<th>{_cell(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="wide"><table>{body}</table></div>')


def heading(words: str, below: str = "", *, level: int = 2) -> Html:
    """Write a heading, and in small letters what is to be known of what comes."""
    soft = f'<p class="soft">{escape(below)}</p>' if below else ""
    return Html(f"<h{level}>{escape(words)}</h{level}>{soft}")


def _placed(i: int, each: Piece) -> str:
    if not isinstance(each, Plot):
        return f'<div data-piece="{i}">{each}</div>'
    caption = heading(each.title, each.note)
    drawing = (
        f'<div class="plot" data-piece="{i}" role="img" aria-label="{escape(each.title)}"></div>'
    )
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def _cell(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def _safe(json: bytes) -> str:
    """Write JSON so that no text in it ends the script element around it, or begins another."""
    return json.decode().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _style() -> str:
    return _read("uplot/uPlot.min.css") + _read("page.css")


@cache
def _script() -> str:
    """The script of every page: uPlot with its licence, and ours."""
    return f"/*\n{_read('uplot/LICENSE')}*/\n{_read('uplot/uPlot.iife.min.js')}\n{_read('page.js')}"


def _read(name: str) -> str:
    return (files("kvtier.page") / name).read_text(encoding="utf-8")
