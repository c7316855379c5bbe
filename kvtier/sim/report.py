"""The report of a sweep."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape

from kvtier.charts import Series, legend, page, plot
from kvtier.sim.results import ReplayRow, ReplayTable
from kvtier.units import format_count, format_nbytes

_MAX_COLOURS = 11
_STYLE = (
    ":root{--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#a35fb5;--c4:#b8860b;--c5:#56b4e9;"
    "--c6:#cc3366;--c7:#7d8590;--c8:#3b7a57;--c9:#8b4513;--c10:#444cf7}"
)


def render(table: ReplayTable) -> str:
    """Write the page."""
    names = list(dict.fromkeys(row.policy for row in table.rows if row.capacity_tokens))
    colours = {name: f"--c{i % _MAX_COLOURS}" for i, name in enumerate(names)}
    timed = [row for row in table.rows if row.ttft_s is not None]
    key = legend(list(colours.items()))
    skipped = f", {table.skipped_rows:,} malformed rows skipped" if table.skipped_rows else ""
    assumed = [f"{name} {value}" for name, value in table.assumptions.items()]
    body = [
        f"<h1>{escape(_headline(table))}</h1>",
        f'<p class="soft">{escape(what_was_replayed(table) + skipped)}</p>',
        _rows(table.rows),
        "<h2>Hits by size</h2>",
        '<p class="soft">Share of the blocks that were found; Belady knows the future.</p>',
        key,
        _by_size(table.rows, colours, lambda row: row.hit_blocks, "share of blocks"),
        "<h2>Seconds of prefill saved, by size</h2>",
        key,
        _by_size(table.rows, colours, lambda row: row.saved_prefill, "share of seconds"),
        *(_times(timed, colours) if timed else ()),
        *(_occupancy(row) for row in timed if row.occupancy),
        f"<footer>assumed: {escape(', '.join(assumed))}</footer>",
    ]
    return page("kvtier replay", body, _STYLE)


def _headline(table: ReplayTable) -> str:
    real = [row for row in table.rows if not row.ceiling]
    best = max(real, key=lambda row: row.saved_prefill)
    return (
        f"Best: {best.policy} with {_size(best)} tokens saves {best.saved_prefill:.1%} of the prefill "
        f"({best.saved_prefill_s:,.0f} s)"
    )


def what_was_replayed(table: ReplayTable) -> str:
    """Name the trace, and say how long it is."""
    return (
        f"{table.trace}: {table.requests:,} requests, {table.block_references:,} references to blocks "
        f"of {table.block_tokens} tokens"
    )


def _rows(rows: Sequence[ReplayRow]) -> str:
    timed = any(row.ttft_s is not None for row in rows)
    heads = ["policy", "tokens", "hit blocks", "hit tokens", "saved s", "saved"]
    heads += ["TTFT p50 s", "p95 s", "p99 s"] if timed else []
    lines = ["".join(f"<th>{head}</th>" for head in [*heads, "moved"])]
    for row in rows:
        cells = [escape(row.policy), _size(row), f"{row.hit_blocks:.4f}", f"{row.hit_tokens:.4f}"]
        cells += [f"{row.saved_prefill_s:,.0f}", f"{row.saved_prefill:.4f}"]
        if timed:
            ttft = row.ttft_s
            cells += [f"{t:.2f}" for t in (ttft.p50, ttft.p95, ttft.p99)] if ttft else ["-"] * 3
        cells.append("<br>".join(f"{k} {format_nbytes(v)}" for k, v in row.bytes.items()) or "-")
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _by_size(
    rows: Sequence[ReplayRow],
    colours: dict[str, str],
    value: Callable[[ReplayRow], float],
    label: str,
) -> str:
    """Draw one line per policy; sizes stand at equal distances, they are usually powers."""
    sizes = sorted({row.capacity_tokens for row in rows if row.capacity_tokens})
    place = {size: i for i, size in enumerate(sizes)}
    series = []
    for name, colour in colours.items():
        mine = [(row.capacity_tokens or 0, value(row)) for row in rows if row.policy == name]
        points = [(float(place[size]), y) for size, y in sorted(mine) if size in place]
        series.append(Series(name, colour, points))
        titles = [f"{name}, {format_count(sizes[int(x)])} tokens: {y:.4f}" for x, y in points]
        series.append(Series(name, colour, points, line=False, titles=titles))
    words = ", ".join(format_count(size) for size in sizes)
    return plot(
        series,
        x_label=f"tokens: {words}",
        y_label=label,
        x_ticks=[],
        x_range=(-0.2, max(len(sizes) - 0.8, 0.8)),
    )


def _times(rows: Sequence[ReplayRow], colours: dict[str, str]) -> list[str]:
    """Draw the three quantiles of the time to first token."""
    charts = ["<h2>Time to first token, by size</h2>"]
    for name in ("p50", "p95", "p99"):
        value = partial(_quantile, name)
        charts += [legend([(name, "--ink")]), _by_size(rows, colours, value, "s")]
    return charts


def _quantile(name: str, row: ReplayRow) -> float:
    return getattr(row.ttft_s, name, 0.0)


def _occupancy(row: ReplayRow) -> str:
    moments = row.occupancy or []
    names = list(moments[0].used)
    series = [
        Series(name, f"--c{i}", [(each.at_s, each.used[name] / 2**30) for each in moments])
        for i, name in enumerate(names)
    ]
    end = max(moment.at_s for moment in moments) or 1.0
    title = f"<h2>Bytes in the tiers over time: {escape(row.policy)}, {_size(row)} tokens</h2>"
    keys = legend([(name, f"--c{i}") for i, name in enumerate(names)])
    return title + keys + plot(series, x_label="seconds", y_label="GiB", x_range=(0, end))


def _size(row: ReplayRow) -> str:
    return format_count(row.capacity_tokens) if row.capacity_tokens else "no bound"
