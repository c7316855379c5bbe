"""`kvtier replay`: what each policy and size would have done with a trace of real traffic."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvtier.cli.outputs import JsonFile, check_writable, console_beside, plain, save, save_json
from kvtier.cli.tracefile import RATE, Chunk, Format, Seed, SessionRate, open_trace, say_skipped
from kvtier.config import Config, Plugin, ReplayConfig, load
from kvtier.config.plugins import plugin
from kvtier.errors import ConfigError
from kvtier.sim.engine import media_of
from kvtier.sim.jobs import Job, block_jobs, tier_jobs
from kvtier.sim.report import render, what_was_replayed
from kvtier.sim.results import ReplayRow, ReplayTable
from kvtier.sim.setting import Prefill
from kvtier.sim.sweep import sweep
from kvtier.trace.trace import Trace
from kvtier.units import format_count, format_nbytes, parse_count

_SIZES = "1M,3M,10M"
_ASSUMED = ReplayConfig()

Policies = Annotated[str | None, typer.Option(help="Eviction policies, by comma; default: lru.")]
Sizes = Annotated[
    str | None, typer.Option(help=f"Sizes, by comma; of tier 0 with --config; default: {_SIZES}.")
]
Tiers = Annotated[
    Path | None, typer.Option(help="Replay over these tiers, with timing: see `replay:` in it.")
]
KvBytes = Annotated[
    str | None,
    typer.Option(help=f"Of all layers; default: {format_nbytes(_ASSUMED.kv_bytes_per_token)}."),
]
Rate = Annotated[
    float | None, typer.Option(help=f"Tokens per second; default: {_ASSUMED.prefill_rate:g}.")
]
Knee = Annotated[
    str | None,
    typer.Option(
        help="Context at which attention costs as much as the rest; "
        f"default: {_ASSUMED.prefill_knee:g}."
    ),
]


def replay(  # noqa: PLR0913 - a command's options are its arguments
    trace: Annotated[Path, typer.Option(help="The trace: plain, .gz or .zst.")],
    format: Format = "auto",
    policy: Policies = None,
    capacity_tokens: Sizes = None,
    config: Tiers = None,
    json_file: JsonFile = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots here.")] = None,
    chunk_tokens: Chunk = None,
    kv_bytes_per_token: KvBytes = None,
    prefill_rate: Rate = None,
    prefill_knee: Knee = None,
    seed: Seed = 0,
    session_rate: SessionRate = RATE,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Replay a trace through the brain, per policy and size; Belady and an infinite cache are the ceilings."""
    check_writable(json_file, html)
    tiers = load(config, here=False) if config else None
    if tiers and chunk_tokens is None:
        chunk_tokens = tiers.chunk_tokens
    sizes = counts(capacity_tokens, "--capacity-tokens")
    wanted = {
        "kv_bytes_per_token": kv_bytes_per_token,
        "prefill_rate": prefill_rate,
        "prefill_knee": prefill_knee,
    }
    given = assumed({key: value for key, value in wanted.items() if value is not None}, tiers)
    work = _work(tiers, policy, sizes, given)
    file, loaded = open_trace(trace, format, chunk_tokens, seed, session_rate)
    table = ReplayTable(
        trace=str(trace),
        requests=len(loaded),
        block_references=len(loaded.ids),
        block_tokens=loaded.block_tokens,
        skipped_rows=file.skipped.count,
        assumptions=assumptions(given, tiers, seed),
        rows=run(loaded, work, jobs or cores()),
    )
    console = console_beside(json_file)
    console.print(plain(what_was_replayed(table)))
    console.print(block_table(table.rows) if tiers is None else tier_table(table.rows))
    say_skipped(file.skipped, console)
    save_json(json_file, table)
    if html is not None:
        save(html, render(table))


def _work(
    tiers: Config | None, policy: str | None, sizes: list[int], given: ReplayConfig
) -> list[Job]:
    """List the replays to run: over the configured tiers, or of one tier without timing."""
    if tiers is not None:
        return tier_jobs(tiers, policies(policy) if policy else [], sizes)
    return block_jobs(
        policies(policy or "lru"),
        sizes or counts(_SIZES, ""),
        nbytes_per_token=given.kv_bytes_per_token,
        prefill=Prefill.of(given),
    )


def policies(words: str) -> list[Plugin]:
    """Read the names of eviction policies; an unknown one is a ConfigError."""
    given = [plugin("eviction", word.strip(), "--policy") for word in words.split(",")]
    return [msgspec.convert(each, Plugin) for each in given]


def counts(words: str | None, path: str) -> list[int]:
    """Read token counts; what is none is a ConfigError."""
    try:
        return [parse_count(word.strip()) for word in (words or "").split(",") if word.strip()]
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def assumed(options: dict[str, object], tiers: Config | None) -> ReplayConfig:
    """Read what the replay goes by: the options, or the section `replay:` of a configuration.

    Raises:
        ConfigError: an option is no such thing, or is for the configuration to say.
    """
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if tiers is not None:
            raise ConfigError(f"{option}: with --config it is replay.{name} in the file")
        try:
            load({"replay": {name: value}})
        except ConfigError as exc:
            raise ConfigError(str(exc).replace(f"replay.{name}", option)) from exc
    return tiers.replay if tiers else load({"replay": options}).replay


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def assumptions(given: ReplayConfig, tiers: Config | None, seed: int) -> dict[str, object]:
    """List what the figures rest on."""
    made: dict[str, object] = {**msgspec.to_builtins(given), "seed": seed}
    if tiers is None:
        del made["decode_rate"]
    else:
        pairs = zip(tiers.tiers, media_of(tiers), strict=True)
        made["tiers"] = {tier.name: msgspec.to_builtins(medium) for tier, medium in pairs}
    return made


def run(trace: Trace, jobs: list[Job], workers: int) -> list[ReplayRow]:
    """Sweep behind a progress bar, where somebody watches."""
    columns = (TextColumn("replays"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replays", total=len(jobs))
        return sweep(trace, jobs, workers=workers, done=lambda: bar.advance(task))


def block_table(rows: list[ReplayRow]) -> Table:
    """Draw what each size hits and moves."""
    table = _table("hit blocks", "hit tokens", "saved s", "saved", "in", "out")
    for row in rows:
        moved = [format_nbytes(row.bytes[f"dram_{way}"]) if row.bytes else "-" for way in _WAYS]
        _add(
            table, row, f"{row.hit_tokens:.4f}", f"{row.saved_prefill_s:,.0f}", _saved(row), *moved
        )
    return table


def tier_table(rows: list[ReplayRow]) -> Table:
    """Draw what each configuration hits, how long first tokens take, and what it writes."""
    table = _table("hit blocks", "saved", "p50 s", "p95 s", "p99 s", "busy", "written", "w. ampl.")
    for row in rows:
        cells = ["-"] * 6
        if row.ttft_s is not None:
            lower = row.write_amplification or {}
            written = sum(row.bytes[f"{name}_in"] for name in lower)
            times = (row.ttft_s.p50, row.ttft_s.p95, row.ttft_s.p99)
            cells = [f"{each:.2f}" for each in times]
            cells += [
                f"{row.utilisation:.0%}",
                format_nbytes(written),
                f"{sum(lower.values()):.2f}",
            ]
        _add(table, row, _saved(row), *cells)
    return table


_WAYS = ("in", "out")


def _table(*names: str) -> Table:
    table = Table("policy", box=None)
    for name in ("tokens", *names):
        table.add_column(name, justify="right")
    return table


def _add(table: Table, row: ReplayRow, *cells: str) -> None:
    size = format_count(row.capacity_tokens) if row.capacity_tokens else "-"
    style = "dim" if row.ceiling else None
    table.add_row(row.policy, size, f"{row.hit_blocks:.4f}", *cells, style=style)


def _saved(row: ReplayRow) -> str:
    return f"{row.saved_prefill:.4f}"
