"""What a plot shows, in numbers and words; the browser draws it."""

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Literal

import msgspec

Colour = str
"""The name of a CSS variable of page.css, which has it for light and for dark."""

PALETTE: tuple[Colour, ...] = (
    *("blue", "orange", "green", "purple", "gold", "sky"),
    *("red", "teal", "brown", "indigo", "grey"),
)
_MEANT: dict[str, Colour] = {"computed": "grey", "hbm": "purple", "dram": "blue", "nvme": "orange"}

Unit = Literal["", "bytes", "bytes/s", "seconds", "share", "tokens", "tokens/s", "GB/s"]
"""Of the values; bytes, seconds and shares are written as people write them, the others behind the number."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one name and colour; a value of None or NaN is a gap."""

    name: str
    colour: Colour
    points: Sequence[tuple[float, float | None]]
    draw: Literal["line", "dashes", "dots", "fill", "bars"] = "line"
    titles: Sequence[str] = ()  # one per point, shown with its values


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Series over a common pair of axes; the vertical one starts at zero."""

    title: str
    series: Sequence[Series]
    note: str = ""  # below the title, in small letters
    unit: Unit = ""
    x_label: str = ""
    categories: Sequence[str] = ()  # names of x = 0, 1, 2 ...
    time: bool = False  # x is seconds since 1970
    stacked: bool = False  # the first at the bottom; all have the same x


def colours(names: Iterable[str]) -> dict[str, Colour]:
    """Give each name a colour: the same one in all reports for what all reports have."""
    given: dict[str, Colour] = {}
    for name in names:
        free = (each for each in PALETTE if each not in {*given.values(), *_MEANT.values()})
        spare = PALETTE[len(given) % len(PALETTE)]
        given[name] = _MEANT.get(name) or next(free, spare)
    return given


def builtins(plot: Plot) -> dict[str, object]:
    """Turn a plot into what page.js draws: one list of x, and for each series a list of y that is as long."""
    xs = sorted({x for one in plot.series for x, _ in one.points})
    titles: dict[float, list[str]] = {}
    for one in plot.series:
        for (x, _), title in zip(one.points, one.titles, strict=False):
            titles.setdefault(x, []).append(title)
    return {
        "title": plot.title,
        "unit": plot.unit,
        "xLabel": plot.x_label,
        "categories": list(plot.categories),
        "time": plot.time,
        "stacked": plot.stacked,
        "x": xs,
        "titles": ["; ".join(titles.get(x, ())) for x in xs] if titles else None,
        "series": [
            {"name": one.name, "colour": one.colour, "draw": one.draw, "y": _aligned(one, xs)}
            for one in plot.series
        ],
    }


def _aligned(one: Series, xs: Sequence[float]) -> list[float | None]:
    at = {x: y for x, y in one.points if y is not None and isfinite(y)}
    return [at.get(x) for x in xs]
