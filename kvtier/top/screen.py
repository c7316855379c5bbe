"""The facts of one server as text for a terminal: about twenty lines of 80 columns, wider where there is room."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kvtier.errors import one_line
from kvtier.top.facts import COMPUTED, Facts, Spread, TierFacts
from kvtier.top.figures import TIER_HEADS, seconds, share, span, tier_cells, worth
from kvtier.units import format_count, format_nbytes

_COLOURS = {COMPUTED: "yellow", "hbm": "green"}
_OTHERS = ("cyan", "blue", "magenta", "bright_cyan", "bright_blue", "bright_magenta")
_MOST_MISSES = 4


def screen(address: str, facts: Facts, width: int) -> RenderableType:
    """Show one server."""
    head = Text.assemble((one_line(address), "bold"), f", {span(facts)}")
    lines: list[RenderableType] = [head, *_sources(facts, width), "", _tiers(facts)]
    if facts.ttft:
        lines += ["", _ttft(facts)]
    if facts.misses:
        lines += ["", _misses(facts)]
    lines += ["", *(Text(f"! {each}", "bold red") for each in facts.wrong or ())]
    if not facts.wrong:
        lines.append(Text("nothing failed", "green"))
    return Group(*lines)


def words(address: str, facts: Facts) -> str:
    """Say the same in a few sentences, for a log or a reader who does not know the table."""
    said = [f"{one_line(address)}: kvtier is {'off' if facts.off else 'on'}"]
    total = sum(facts.tokens.values())
    if total:
        parts = ", ".join(f"{share(n, total)} {name}" for name, n in facts.tokens.items() if n)
        said.append(f"{format_count(total)} prompt tokens: {parts}")
        said.append(worth(facts))
    for tier in facts.tiers:
        state = f"{tier.failed} failures since the start{', rests' if tier.resting else ''}"
        said.append(
            f"{tier.name}: {format_nbytes(tier.used)} of {format_nbytes(tier.capacity)} in use, {state}"
        )
    if facts.misses:
        why = ", ".join(
            f"{share(n, sum(facts.misses.values()))} {each}" for each, n in facts.misses.items()
        )
        said.append(f"computed because: {why}")
    said += [f"look at this: {each}" for each in facts.wrong]
    return "\n".join(said)


def _sources(facts: Facts, width: int) -> list[Text]:
    """Draw where prompt tokens came from as one bar, with its legend and what that was worth."""
    total = sum(facts.tokens.values())
    if not total:
        return [Text("no prompt tokens yet", "dim")]
    shown = {name: n for name, n in facts.tokens.items() if n}
    colours = _colours(facts.tokens)
    bar, legend, drawn, so_far = Text(), Text(), 0, 0
    for name, n in shown.items():
        so_far += n
        cells = round(so_far / total * width) - drawn
        bar.append("█" * cells, colours[name])
        drawn += cells
        legend.append("■ ", colours[name]).append(f"{name} {share(n, total)}  ")
    title = Text(
        f"{format_count(total)} prompt tokens, {facts.reused:.0%} not computed; {worth(facts)}"
    )
    return [title, bar, legend]


def _tiers(facts: Facts) -> Table:
    table = _table(*TIER_HEADS)
    for tier in facts.tiers:
        *cells, _ = map(escape, tier_cells(tier))
        table.add_row(*cells, _failed(tier))
    return table


def _failed(tier: TierFacts) -> str:
    colour = "bold red" if tier.resting else "red" if tier.failed else ""
    said = tier_cells(tier)[-1]
    return f"[{colour}]{said}[/]" if colour else said


def _ttft(facts: Facts) -> Table:
    table = _table("time to first token, prefix from", "requests", "p50", "p95")
    for name, each in facts.ttft.items():
        table.add_row(escape(name), *_spread(each))
    return table


def _spread(each: Spread) -> tuple[str, str, str]:
    return format_count(each.count), seconds(each.p50_s), seconds(each.p95_s)


def _misses(facts: Facts) -> Table:
    table = _table("computed because", "tokens", "share")
    total = sum(facts.misses.values())
    for reason, n in list(facts.misses.items())[:_MOST_MISSES]:
        table.add_row(reason, format_count(n), share(n, total))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _colours(names: dict[str, int]) -> dict[str, str]:
    tiers = [name for name in names if name not in _COLOURS]
    return _COLOURS | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(tiers)}
