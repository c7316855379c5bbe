"""The report of a sweep."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape

from kvtier.page.document import Html, Piece, document, heading, table
from kvtier.page.plot import Colour, Plot, Series, Unit, colours
from kvtier.sim.results import ReplayRow, ReplayTable
from kvtier.units import format_count, format_nbytes


def render(found: ReplayTable) -> str:
    """Write the page."""
    names = dict.fromkeys(row.policy for row in found.rows if row.capacity_tokens)
    given = colours(names)
    timed = [row for row in found.rows if row.ttft_s is not None]
    skipped = f", {found.skipped_rows:,} malformed rows skipped" if found.skipped_rows else ""
    assumed = [f"{name} {value}" for name, value in found.assumptions.items()]
    body: list[Piece] = [
        heading(_headline(found), what_was_replayed(found) + skipped, level=1),
        _rows(found.rows),
        _by_size(
            found.rows,
            given,
            lambda row: row.hit_blocks,
            "Hits by size",
            note="Share of the blocks that were found; Belady knows the future.",
        ),
        _by_size(
            found.rows, given, lambda row: row.saved_prefill, "Seconds of prefill saved, by size"
        ),
    ]
    for name in ("p50", "p95", "p99") if timed else ():
        words = f"Time to first token, by size: {name}"
        body.append(_by_size(timed, given, partial(_quantile, name), words, "seconds"))
    body += [_occupancy(row) for row in timed if row.occupancy]
    body.append(Html(f"<footer>assumed: {escape(', '.join(assumed))}</footer>"))
    return document("kvtier replay", body)


def _headline(found: ReplayTable) -> str:
    """Say what the best policy saves at its size, and what another one does there."""
    real = [row for row in found.rows if not row.ceiling]
    best, *others = sorted(real, key=lambda row: -row.saved_prefill)
    words = (
        f"With {_size(best)} tokens {best.policy} saves {best.saved_prefill:.1%} of the prefill "
        f"({best.saved_prefill_s:,.0f} s)"
    )
    beside = [row for row in others if row.capacity_tokens == best.capacity_tokens]
    beside.sort(key=lambda row: row.policy != "lru")  # the one that everybody knows
    return f"{words}, {beside[0].policy} {beside[0].saved_prefill:.1%}" if beside else words


def what_was_replayed(table: ReplayTable) -> str:
    """Name the trace, and say how long it is."""
    return (
        f"{table.trace}: {table.requests:,} requests, {table.block_references:,} references to blocks "
        f"of {table.block_tokens} tokens"
    )


def _rows(rows: Sequence[ReplayRow]) -> Html:
    timed = any(row.ttft_s is not None for row in rows)
    moved = list(dict.fromkeys(name for row in rows for name in row.bytes))
    heads = ["policy", "tokens", "hit blocks", "hit tokens", "saved s", "saved"]
    heads += ["TTFT p50 s", "p95 s", "p99 s"] if timed else []
    lines = []
    for row in rows:
        cells = [row.policy, _size(row), f"{row.hit_blocks:.4f}", f"{row.hit_tokens:.4f}"]
        cells += [f"{row.saved_prefill_s:,.0f}", f"{row.saved_prefill:.4f}"]
        if timed:
            ttft = row.ttft_s
            cells += [f"{t:.2f}" for t in (ttft.p50, ttft.p95, ttft.p99)] if ttft else ["-"] * 3
        cells += [format_nbytes(row.bytes[name]) if name in row.bytes else "-" for name in moved]
        lines.append(cells)
    return table([*heads, *(name.replace("_", " ") for name in moved)], lines)


def _by_size(
    rows: Sequence[ReplayRow],
    given: dict[str, Colour],
    value: Callable[[ReplayRow], float],
    title: str,
    unit: Unit = "share",
    note: str = "",
) -> Plot:
    """Draw one line per policy; sizes stand at equal distances, they are usually powers."""
    sizes = sorted({row.capacity_tokens for row in rows if row.capacity_tokens})
    series = [
        Series(
            name=name,
            colour=colour,
            points=[
                (sizes.index(row.capacity_tokens), value(row))
                for row in rows
                if row.policy == name and row.capacity_tokens
            ],
        )
        for name, colour in given.items()
    ]
    words = [f"{format_count(size)} tokens" for size in sizes]
    return Plot(title=title, note=note, series=series, unit=unit, categories=words)


def _quantile(name: str, row: ReplayRow) -> float:
    return getattr(row.ttft_s, name, 0.0)


def _occupancy(row: ReplayRow) -> Plot:
    moments = row.occupancy or []
    given = colours(moments[0].used)
    series = [
        Series(name=name, colour=colour, points=[(each.at_s, each.used[name]) for each in moments])
        for name, colour in given.items()
    ]
    title = f"Bytes in the tiers over time: {row.policy}, {_size(row)} tokens"
    return Plot(title=title, series=series, unit="bytes", x_label="seconds")


def _size(row: ReplayRow) -> str:
    return format_count(row.capacity_tokens) if row.capacity_tokens else "no bound"
