"""Pictures for the pages of docs, as SVG: a page of Markdown runs no script."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 28, 40


class Series(NamedTuple):
    """Points of one colour; `line` joins them, else they are dots."""

    name: str
    colour: str  # a CSS variable
    points: Sequence[tuple[float, float]]
    line: bool = True
    titles: Sequence[str] = ()  # one per dot, shown under the pointer


class Part(NamedTuple):
    """A piece of a stacked bar."""

    name: str
    colour: str
    value: float


def plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Draw series over a common pair of axes; the vertical one starts at zero."""
    xs = [x for one in series for x, _ in one.points] or [0.0]
    low, high = x_range or (min(xs), max(xs))
    marks = ticks(max((y for one in series for _, y in one.points), default=0.0))
    x_marks = ticks(high) if x_ticks is None else x_ticks

    def x_at(x: float) -> float:
        return LEFT + (x - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - y / marks[-1] * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT - 6, TOP - 14, y_label, "end", "label")]
    for y in marks:
        parts.append(_line(LEFT, y_at(y), WIDTH - RIGHT, y_at(y), "grid"))
        parts.append(_text(LEFT - 6, y_at(y) + 4, f"{y:g}", "end"))
    shown = [x for x in x_marks if low <= x <= high]
    parts += [_text(x_at(x), HEIGHT - BOTTOM + 16, f"{x:g}", "middle") for x in shown]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle", "label"))
    for one in series:
        spots = [(x_at(x), y_at(y)) for x, y in one.points]
        parts += [_path(spots, one.colour)] if one.line else _dots(spots, one)
    return _svg(parts, HEIGHT)


def bars(rows: Sequence[tuple[str, Sequence[Part]]], *, unit: str) -> str:
    """Draw one horizontal stacked bar per row, all to the same scale."""
    step = 40
    longest = max((sum(part.value for part in row) for _, row in rows), default=0) or 1
    scale = (WIDTH - LEFT - RIGHT - 70) / longest
    parts = []
    for i, (name, row) in enumerate(rows):
        x, y = float(LEFT), i * step + 8
        parts.append(_text(LEFT - 6, y + 17, name, "end"))
        for part in row:
            width = part.value * scale
            title = f"{name}: {part.value:,.0f} {unit} {part.name}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(width - 1, 0):.1f}" height="26" rx="2" '
                f'fill="var({part.colour})"><title>{escape(title)}</title></rect>'
            )
            x += width
        total = sum(part.value for part in row)
        parts.append(_text(x + 6, y + 17, f"{total:,.0f}", "start"))
    return _svg(parts, len(rows) * step)


def ticks(top: float) -> list[float]:
    """Round marks from zero to just above `top`, four to six of them."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    return [step * i for i in range(math.ceil(top / step) + 1)]


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "tick") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"'
    return f"<text {at}>{escape(words)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _path(spots: Sequence[tuple[float, float]], colour: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return f'<polyline points="{points}" fill="none" stroke="var({colour})" stroke-width="2"/>'


def _dots(spots: Sequence[tuple[float, float]], one: Series) -> list[str]:
    titles = one.titles or [one.name] * len(spots)
    return [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="var({one.colour})" fill-opacity=".55">'
        f"<title>{escape(title)}</title></circle>"
        for (x, y), title in zip(spots, titles, strict=True)
    ]
