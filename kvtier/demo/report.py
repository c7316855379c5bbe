"""The report of a demo."""

from collections.abc import Sequence
from html import escape
from statistics import median

from kvtier.demo.results import PassResult
from kvtier.demo.workload import Workload
from kvtier.page.document import Html, Piece, document, heading, table
from kvtier.page.plot import Colour, Plot, Series, colours
from kvtier.units import format_nbytes

WHAT = {
    "vllm": "vLLM alone",
    "dram": "kvtier, DRAM",
    "nvme": "kvtier, little DRAM and NVMe",
    "restart": "the same after a restart: only what NVMe kept",
}
_COLOURS: dict[str, Colour] = {
    "vllm": "grey",
    "dram": "blue",
    "nvme": "orange",
    "restart": "green",
}
_SOURCES = {"computed": "computed", "hbm": "from HBM", "dram": "from DRAM", "nvme": "from NVMe"}


def render(passes: Sequence[PassResult], workload: Workload, machine: dict[str, object]) -> str:
    """Write the page."""
    body: list[Piece] = [
        heading(headline(passes), _setting(workload), level=1),
        _table(passes),
        _ttft(passes),
        _sources(passes),
        *(_occupancy(each) for each in passes if each.occupancy and each.capacity),
    ]
    body.append(Html(f"<footer>{escape(_footer(machine))}</footer>"))
    return document("kvtier demo", body)


def headline(passes: Sequence[PassResult]) -> str:
    """Say in one sentence what came out."""
    by_name = {each.name: each for each in passes}
    alone, dram = (by_name[name].ttft_s(50, first_turn=1) for name in ("vllm", "dram"))
    same = all(each.identical for each in passes)
    words = "and every token is the same" if same else "but answers differ"
    return (
        f"Who comes back waits {alone * 1e3:.0f} ms for the first token without kvtier, "
        f"{dram * 1e3:.0f} ms with it (medians from the second turn on), {words}"
    )


def identical(each: PassResult, no: str) -> str:
    """Say whether a pass answered as the first one did, which is what all are held against."""
    return "-" if each.name == "vllm" else "yes" if each.identical else no


def _setting(workload: Workload) -> str:
    return (
        f"{workload.sessions} people chat in turn, {workload.turns} turns each, up to "
        f"{workload.longest:,} tokens per conversation; the engine's own cache holds "
        f"{workload.blocks * 128:,} tokens, so that every conversation has left it when its next turn "
        "comes. In the last pass the engine was restarted and only the last turns are asked again."
    )


def _table(passes: Sequence[PassResult]) -> Html:
    heads = ("", "p50 ms", "p95 ms", "computed", "HBM", "DRAM", "NVMe", "identical")
    rows = []
    for each in passes:
        cells = [f"{each.ttft_s(p) * 1e3:,.0f}" for p in (50, 95)]
        cells += [f"{count:,}" for count in each.sources]
        same = identical(each, Html('<b class="bad">no</b>'))
        rows.append((WHAT[each.name], *cells, same))
    return table(heads, rows)


def _ttft(passes: Sequence[PassResult]) -> Plot:
    series: list[Series] = []
    for i, each in enumerate(passes):
        aside = (
            i - (len(passes) - 1) / 2
        ) * 0.16  # passes stand side by side, and sessions in them
        titles = [
            f"session {turn.session + 1}, turn {turn.turn + 1}, {turn.prompt:,} tokens"
            for turn in each.turns
        ]
        dots = [
            (turn.turn + aside + (turn.session % 8 - 3.5) * 0.016, turn.ttft_s)
            for turn in each.turns
        ]
        numbers = sorted({turn.turn for turn in each.turns})
        medians = [(n, median(t.ttft_s for t in each.turns if t.turn == n)) for n in numbers]
        line = Series(name=f"{each.name}, median", colour=_COLOURS[each.name], points=medians)
        series.append(line)
        series.append(
            Series(
                name=each.name,
                colour=_COLOURS[each.name],
                points=dots,
                draw="dots",
                titles=titles,
            )
        )
    turns = max(turn.turn for each in passes for turn in each.turns) + 1
    return Plot(
        title="Time to first token, by turn",
        note="A dot is a request, a line the median of its turn.",
        series=series,
        unit="seconds",
        categories=[f"turn {n + 1}" for n in range(turns)],
    )


def _sources(passes: Sequence[PassResult]) -> Plot:
    given = colours(_SOURCES)
    series = [
        Series(
            name=words,
            colour=given[name],
            points=[(i, getattr(each.sources, name)) for i, each in enumerate(passes)],
            draw="bars",
        )
        for name, words in _SOURCES.items()
    ]
    return Plot(
        title="Where the tokens of the prompts came from",
        series=series,
        unit="tokens",
        categories=[each.name for each in passes],
        stacked=True,
    )


def _occupancy(each: PassResult) -> Plot:
    given = colours(each.capacity)
    series = [
        Series(
            name=f"{tier}, capacity {format_nbytes(capacity)}",
            colour=given[tier],
            points=[(moment.at_s, moment.used.get(tier, 0)) for moment in each.occupancy],
        )
        for tier, capacity in each.capacity.items()
    ]
    title = f"Bytes in the tiers over time: {WHAT[each.name]}"
    return Plot(title=title, series=series, unit="bytes", x_label="seconds")


def _footer(machine: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
