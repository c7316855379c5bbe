"""The report of `bench tiers`: the tiers as a table, fio's cells as heat maps."""

from collections.abc import Mapping, Sequence
from html import escape

from kvtier.charts import page
from kvtier.measure.fio import Cell, Disk
from kvtier.measure.tiers import HEADS, Point
from kvtier.units import format_nbytes

_STYLE = """
body{max-width:76rem}table{width:auto;margin:.6rem 0 1.6rem}
th,td{padding:.3rem .7rem;border:1px solid #8884}h3{font-size:1rem;font-weight:600}
pre{background:#8881;padding:.8rem 1rem;border-radius:.3rem;overflow:auto}
.row{display:flex;flex-wrap:wrap;gap:0 2rem}
"""


def render(
    points: Sequence[Point], disks: Mapping[str, Disk], recommended: str, machine: str
) -> str:
    """Write the page: `disks` are what fio found by tier, `recommended` is YAML."""
    maps = "".join(_disk(tier, disk) for tier, disk in disks.items())
    wanted = (
        f"<h2>Recommended, in the YAML</h2><pre>{escape(recommended)}</pre>" if recommended else ""
    )
    body = [
        f"<h1>Tiers</h1><p class=soft>{escape(machine)}</p>{wanted}{maps}",
        "<h2>Through kvtier</h2><p class=soft>Chunks written and read through the I/O process. ",
        "Times are from a chunk's submission to its answer, waiting included; a tier's last lines are ",
        f"with what is recommended.</p>{_table(points)}",
    ]
    return page("kvtier bench tiers", body, _STYLE)


def _disk(tier: str, disk: Disk) -> str:
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
    return (
        f"<h2>{escape(tier)}: the disk alone, by fio</h2><p class=soft>GB/s, both ways together; the "
        f"darker, the nearer to the best of the disk.</p>{maps}"
        + (f"<p class=soft>fio refused:<ul class=soft>{refused}</ul>" if refused else "")
    )


def _table(points: Sequence[Point]) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEADS)
    rows = "".join(f"<tr><td>{'<td>'.join(map(escape, each.cells()))}</tr>" for each in points)
    return f"<table><tr>{head}</tr>{rows}</table>"


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
