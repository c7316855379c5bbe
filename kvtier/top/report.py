"""The facts of servers as plots over time, and what all of that time came to."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import nan

from msgspec.structs import replace

from kvtier.errors import one_line
from kvtier.page.document import Html, Piece, heading, table
from kvtier.page.plot import Colour, Plot, Series, Unit, colours
from kvtier.top.facts import Facts, TierFacts
from kvtier.top.figures import TIER_HEADS, share, span, tier_cells, worth
from kvtier.top.history import History, Step
from kvtier.units import format_count

TITLE = "kvtier top"


def body(histories: Iterable[History]) -> list[Piece]:
    """Write what was seen of each server."""
    pieces: list[Piece] = []
    for each in histories:
        found = each.recorded()
        pieces.append(heading(one_line(each.address), span(found) if found else "", level=1))
        pieces.append(_state(each, found))
        if found is not None:
            pieces += _server(found, each.steps)
    return pieces


def _state(history: History, found: Facts | None) -> Html:
    """Say what is wrong, and what it was worth."""
    wrong = [one_line(history.why)] if history.why else []
    wrong += found.wrong if found else []
    lines = [f'<p class="bad">{escape(each)}</p>' for each in wrong]
    if found is None:
        lines.append('<p class="soft">one look is not enough for a rate ...</p>')
    elif total := sum(found.tokens.values()):
        said = f"{format_count(total)} prompt tokens, {found.reused:.0%} not computed"
        lines.append(f"<p>{escape(said)}; {worth(found)}</p>")
    else:
        lines.append("<p>no prompt tokens in this time</p>")
    if found and not wrong:
        lines.append('<p class="good">nothing failed</p>')
    return Html("".join(lines))


def _server(found: Facts, steps: Sequence[Step]) -> list[Piece]:
    given = colours(dict.fromkeys(["hbm", *(tier.name for tier in found.tiers), *found.tokens]))
    tiers = [tier.name for tier in found.tiers]

    def by_tier(title: str, unit: Unit, value: Callable[[TierFacts], float]) -> Plot:
        series = [_of_tier(name, given[name], steps, value) for name in tiers]
        return Plot(title=title, series=series, unit=unit, time=True)

    return [
        table(TIER_HEADS, [tier_cells(tier) for tier in found.tiers]),
        _tokens(found, steps, given),
        _ttft(steps, given),
        _worth(steps),
        _misses(found),
        _reads(steps, given),
        by_tier("Written to the tiers", "bytes/s", lambda tier: tier.write_rate),
        by_tier("How full the tiers are", "share", lambda tier: tier.used / (tier.capacity or 1)),
        by_tier("Wait of requests for reads, p95", "seconds", lambda tier: tier.wait.p95_s),
        by_tier("Failures from look to look", "", lambda tier: sum(tier.failures.values())),
    ]


def _of_tier(
    name: str, colour: Colour, steps: Sequence[Step], value: Callable[[TierFacts], float]
) -> Series:
    points = [
        (step.at, value(tier)) for step in steps for tier in step.facts.tiers if tier.name == name
    ]
    return Series(name=name, colour=colour, points=points)


def _tokens(found: Facts, steps: Sequence[Step], given: dict[str, Colour]) -> Plot:
    series = [
        Series(
            name=name,
            colour=given[name],
            points=[(at, each.tokens.get(name, 0) / each.seconds) for at, each in steps],
            draw="fill",
        )
        for name in found.tokens
    ]
    return Plot(
        title="Prompt tokens by where their KV came from",
        series=series,
        unit="tokens/s",
        time=True,
        stacked=True,
    )


def _ttft(steps: Sequence[Step], given: dict[str, Colour]) -> Plot:
    names = [name for name in given if any(name in each.ttft for _, each in steps)]
    series = [
        Series(
            name=name,
            colour=given[name],
            points=[
                (at, each.ttft[name].p50_s if name in each.ttft else None) for at, each in steps
            ],
        )
        for name in names
    ]
    return Plot(
        title="Time to first token by where the prefix came from, median",
        series=series,
        unit="seconds",
        time=True,
    )


def _worth(steps: Sequence[Step]) -> Plot:
    saved: list[tuple[float, float]] = []
    spent: list[tuple[float, float]] = []
    for at, each in steps:
        saved.append((at, each.saved_s + (saved[-1][1] if saved else 0.0)))
        spent.append((at, each.spent_s + (spent[-1][1] if spent else 0.0)))
    series = [
        Series(name="saved", colour="green", points=saved),
        Series(name="spent", colour="red", points=spent),
    ]
    return Plot(
        title="What hits are worth",
        note="Seconds of prefill that they saved, and of waiting for them, since the first look.",
        series=series,
        unit="seconds",
        time=True,
    )


def _reads(steps: Sequence[Step], given: dict[str, Colour]) -> Plot:
    series = []
    for tier in steps[-1].facts.tiers:
        colour = given[tier.name]
        series.append(_of_tier(tier.name, colour, steps, lambda tier: tier.read_rate))
        if tier.medium_rate:
            reach = _of_tier(tier.name, colour, steps, lambda tier: tier.medium_rate or nan)
            series.append(replace(reach, name=f"{tier.name} reaches", draw="dashes"))
    return Plot(
        title="Read from the tiers",
        note="Dashes are what a tier reaches.",
        series=series,
        unit="bytes/s",
        time=True,
    )


def _misses(found: Facts) -> Plot:
    points = [(i, n) for i, n in enumerate(found.misses.values())]
    total = sum(found.misses.values())
    titles = [f"{reason}, {share(n, total)}" for reason, n in found.misses.items()]
    series = [
        Series(name="computed tokens", colour="grey", points=points, draw="bars", titles=titles)
    ]
    return Plot(
        title="Why prompt tokens were computed",
        note="docs/operations.md says what helps.",
        series=series if points else [],
        unit="tokens",
        categories=list(found.misses),
    )
