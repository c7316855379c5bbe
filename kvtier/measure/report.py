"""The report of `bench tiers`: what each tier gives by depth, all points as a table, fio's cells as heat maps."""

from collections.abc import Mapping, Sequence
from html import escape

from kvtier.measure.fio import Cell, Disk
from kvtier.measure.tiers import HEADS, Point
from kvtier.page.document import Html, Piece, document, heading, table
from kvtier.page.plot import Plot, Series, colours
from kvtier.units import format_nbytes


def render(
    points: Sequence[Point], disks: Mapping[str, Disk], recommended: str, machine: str
) -> str:
    """Write the page: `disks` are what fio found by tier, `recommended` is YAML."""
    body: list[Piece] = [heading("Tiers", machine, level=1)]
    if recommended:
        pre = Html(f"<pre>{escape(recommended)}</pre>")
        body += [heading("Recommended, in the YAML"), pre]
    body += [
        _by_depth(points),
        *(_disk(tier, disk) for tier, disk in disks.items()),
        heading(
            "All of it",
            "Times are from a chunk's submission to its answer, waiting included; a tier's last lines are "
            "with what is recommended.",
        ),
        table(HEADS, [each.cells() for each in points]),
    ]
    return document("kvtier bench tiers", body)


def _by_depth(points: Sequence[Point]) -> Plot:
    """Draw what each tier reads and writes; reads are lines, writes dashes."""
    depths = sorted({each.depth for each in points})
    given = colours(dict.fromkeys(each.tier for each in points))
    series = []
    for tier, way in dict.fromkeys((each.tier, each.way) for each in points):
        best: dict[int, float] = {}
        for each in points:
            if (each.tier, each.way) == (tier, way):
                best[each.depth] = max(each.gb_s, best.get(each.depth, 0.0))
        series.append(
            Series(
                name=f"{tier}, {way}",
                colour=given[tier],
                points=[(depths.index(depth), value) for depth, value in best.items()],
                draw="line" if way == "read" else "dashes",
            )
        )
    names = [f"depth {depth}" for depth in depths]
    return Plot(
        title="Through kvtier",
        note="Chunks written and read through the I/O process; the best of each number of operations at a time.",
        series=series,
        unit="GB/s",
        categories=names,
    )


def _disk(tier: str, disk: Disk) -> Html:
    """One heat map for each engine and mix, the mixes of an engine side by side."""
    maps = ""
    for engine in dict.fromkeys(cell.engine for cell in disk.cells):
        mixes = dict.fromkeys(cell.mix for cell in disk.cells if cell.engine == engine)
        each = (
            f"<div><h3>{engine}, {mix}</h3>{_heat_map(disk.cells, engine, mix)}</div>"
            for mix in mixes
        )
        maps += f"<div class=row>{''.join(each)}</div>"
    refused = "".join(f"<li>{escape(why)}" for why in disk.refused)
    return Html(
        f"<h2>{escape(tier)}: the disk alone, by fio</h2><p class=soft>GB/s, both ways together; the "
        f"darker, the nearer to the best of the disk.</p>{maps}"
        + (f"<p class=soft>fio refused:<ul class=soft>{refused}</ul>" if refused else "")
    )


def _heat_map(cells: Sequence[Cell], engine: str, mix: str) -> str:
    """Block sizes down, depths across; the warmer, the closer to the best of the disk."""
    shown = {(c.block_nbytes, c.depth): c for c in cells if (c.engine, c.mix) == (engine, mix)}
    best = max(cell.gb_s for cell in cells) or 1.0
    blocks, depths = (sorted({key[i] for key in shown}) for i in (0, 1))
    head = "".join(f"<th>depth {depth}</th>" for depth in depths)
    rows = ""
    for block in blocks:
        found = (shown.get((block, depth)) for depth in depths)
        rows += f"<tr><th>{format_nbytes(block)}</th>{''.join(_cell(c, best) for c in found)}</tr>"
    return f"<table><tr><th>block</th>{head}</tr>{rows}</table>"


def _cell(cell: Cell | None, best: float) -> str:
    if cell is None:
        return "<td>-</td>"
    heat = f"background:rgb(213 94 0/{0.08 + 0.72 * cell.gb_s / best:.2f})"
    return f'<td style="{heat}" title="p99 {cell.p99_s * 1e3:.2f} ms">{cell.gb_s:.2f}</td>'
