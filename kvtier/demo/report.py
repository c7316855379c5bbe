"""The report of a demo."""

from collections.abc import Sequence
from html import escape
from statistics import median

from kvtier.charts import Part, Series, bars, legend, page, plot
from kvtier.demo.results import PassResult
from kvtier.demo.workload import Workload

WHAT = {
    "vllm": "vLLM alone",
    "dram": "kvtier, DRAM",
    "nvme": "kvtier, little DRAM and NVMe",
    "restart": "the same after a restart: only what NVMe kept",
}
_TIER_COLOURS = {"dram": "--dram", "nvme": "--nvme"}
_SOURCES = ("computed", "hbm", "dram", "nvme")

_STYLE = """
:root{--vllm:#7d8590;--dram:#0072b2;--nvme:#d55e00;--restart:#009e73;--computed:#9aa3ad;--hbm:#a35fb5}
@media(prefers-color-scheme:dark){:root{--vllm:#9198a1;--dram:#4aa8e0;--nvme:#f08a3c;--restart:#2fc79a;
--computed:#6b737d;--hbm:#c48ad4}}
"""


def render(passes: Sequence[PassResult], workload: Workload, machine: dict[str, object]) -> str:
    """Write the page."""
    body = [
        f"<h1>{escape(headline(passes))}</h1>",
        f'<p class="soft">{escape(_setting(workload))}</p>',
        _table(passes),
        "<h2>Time to first token, by turn</h2>",
        '<p class="soft">A dot is a request, a line the median of its turn.</p>',
        legend([(WHAT[each.name], f"--{each.name}") for each in passes]),
        _ttft(passes),
        "<h2>Where the tokens of the prompts came from</h2>",
        legend([(_source(name), f"--{name}") for name in _SOURCES]),
        _sources(passes),
        *(_occupancy(each) for each in passes if each.occupancy and each.capacity),
        f"<footer>{escape(_footer(machine))}</footer>",
    ]
    return page("kvtier demo", body, _STYLE)


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


def _table(passes: Sequence[PassResult]) -> str:
    heads = ("", "p50 ms", "p95 ms", "computed", "HBM", "DRAM", "NVMe", "identical")
    rows = ["".join(f"<th>{head}</th>" for head in heads)]
    for each in passes:
        same = identical(each, '<b class="bad">no</b>')
        cells = [f"{each.ttft_s(p) * 1e3:,.0f}" for p in (50, 95)]
        cells += [f"{count:,}" for count in each.sources]
        cells = [f"{escape(WHAT[each.name])}", *cells, same]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _ttft(passes: Sequence[PassResult]) -> str:
    series: list[Series] = []
    for i, each in enumerate(passes):
        aside = (i - (len(passes) - 1) / 2) * 0.06  # passes stand side by side
        dots = [(turn.turn + 1 + aside, turn.ttft_s * 1e3) for turn in each.turns]
        titles = [
            f"{each.name}: session {turn.session + 1}, turn {turn.turn + 1}, "
            f"{turn.prompt:,} tokens, {turn.ttft_s * 1e3:,.0f} ms"
            for turn in each.turns
        ]
        numbers = sorted({turn.turn for turn in each.turns})
        medians = [
            (n + 1, median(t.ttft_s for t in each.turns if t.turn == n) * 1e3) for n in numbers
        ]
        colour = f"--{each.name}"
        series.append(Series(each.name, colour, medians))
        series.append(Series(each.name, colour, dots, line=False, titles=titles))
    turns = max(turn.turn for each in passes for turn in each.turns) + 1
    return plot(
        series,
        x_label="turn",
        y_label="ms",
        x_ticks=range(1, turns + 1),
        x_range=(0.7, turns + 0.3),
    )


def _sources(passes: Sequence[PassResult]) -> str:
    rows = [
        (
            each.name,
            [
                Part(_source(name), f"--{name}", count)
                for name, count in zip(_SOURCES, each.sources, strict=True)
            ],
        )
        for each in passes
    ]
    return bars(rows, unit="tokens")


def _occupancy(each: PassResult) -> str:
    tiers = [tier for tier in each.capacity if tier in _TIER_COLOURS]
    series = [
        Series(
            tier,
            _TIER_COLOURS[tier],
            [(moment.at_s, moment.used.get(tier, 0) / 2**20) for moment in each.occupancy],
        )
        for tier in tiers
    ]
    names = [
        (f"{tier}, capacity {each.capacity[tier] / 2**20:,.0f} MiB", _TIER_COLOURS[tier])
        for tier in tiers
    ]
    end = max(moment.at_s for moment in each.occupancy)
    return (
        f"<h2>Bytes in the tiers over time: {escape(WHAT[each.name])}</h2>{legend(names)}"
        + plot(series, x_label="seconds", y_label="MiB", x_range=(0, end))
    )


def _source(name: str) -> str:
    return {"computed": "computed", "hbm": "from HBM", "dram": "from DRAM", "nvme": "from NVMe"}[
        name
    ]


def _footer(machine: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
