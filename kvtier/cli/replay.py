"""`kvtier replay`: what each policy and size would have done with a trace of real traffic."""

import math
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvtier.cli.tracefile import Chunk, Format, Seed, SessionRate, open_trace, say_skipped
from kvtier.config import Plugin
from kvtier.config.plugins import plugin
from kvtier.errors import ConfigError
from kvtier.sim.results import ReplayRow, ReplayTable
from kvtier.sim.setting import PREFILL_RATE, Prefill
from kvtier.sim.sweep import Job, block_jobs, sweep
from kvtier.sim.trace import Trace
from kvtier.units import format_count, format_nbytes, parse_count, parse_nbytes

_KV_NBYTES = "128KiB"  # Llama 3.1 8B in bfloat16: 2 x 8 heads x 128 elements x 32 layers x 2 bytes


def replay(  # noqa: PLR0913 - a command's options are its arguments
    trace: Annotated[Path, typer.Option(help="The trace: plain, .gz or .zst.")],
    format: Format = "auto",
    policy: Annotated[str, typer.Option(help="Eviction policies, by comma.")] = "lru",
    capacity_tokens: Annotated[str, typer.Option(help="Sizes, by comma.")] = "1M,3M,10M",
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    chunk_tokens: Chunk = None,
    kv_bytes_per_token: Annotated[str, typer.Option(help="Of all layers.")] = _KV_NBYTES,
    prefill_rate: Annotated[float, typer.Option(help="Tokens per second.")] = PREFILL_RATE,
    prefill_knee: Annotated[
        float, typer.Option(help="Context at which attention costs as much as the rest.")
    ] = math.inf,
    seed: Seed = 0,
    session_rate: SessionRate = 0.02,
    jobs: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
) -> None:
    """Replay a trace through the brain, per policy and size; Belady and an infinite cache are the ceilings."""
    file, loaded = open_trace(trace, format, chunk_tokens, seed, session_rate)
    prefill = Prefill(rate=prefill_rate, knee=prefill_knee)
    work = block_jobs(
        policies(policy),
        counts(capacity_tokens, "--capacity-tokens"),
        nbytes_per_token=nbytes(kv_bytes_per_token),
        prefill=prefill,
    )
    rows = run(loaded, work, jobs or cores())
    table = ReplayTable(
        trace=str(trace),
        requests=len(loaded),
        block_references=len(loaded.ids),
        block_tokens=loaded.block_tokens,
        skipped_rows=file.skipped.count,
        assumptions={
            "kv_bytes_per_token": nbytes(kv_bytes_per_token),
            "prefill_rate_tokens_per_s": prefill.rate,
            "prefill_knee_tokens": prefill.knee if prefill.knee != math.inf else None,
            "seed": seed,
        },
        rows=rows,
    )
    console = Console(highlight=False)
    console.print(escape(headline(table)))
    console.print(render(rows))
    say_skipped(file.skipped, console)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1))


def policies(words: str) -> list[Plugin]:
    """Read the names of eviction policies.

    Raises:
        ConfigError: one is unknown.
    """
    given = [plugin("eviction", word.strip(), "--policy") for word in words.split(",")]
    return [msgspec.convert(each, Plugin) for each in given]


def counts(words: str, path: str) -> list[int]:
    """Read token counts.

    Raises:
        ConfigError: one is not.
    """
    try:
        return [parse_count(word.strip()) for word in words.split(",")]
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def nbytes(words: str) -> int:
    """Read a size.

    Raises:
        ConfigError: it is none.
    """
    try:
        return parse_nbytes(int(words) if words.isdigit() else words)
    except ValueError as exc:
        raise ConfigError(f"--kv-bytes-per-token: {exc}") from exc


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def run(trace: Trace, jobs: list[Job], workers: int) -> list[ReplayRow]:
    """Sweep behind a progress bar, where somebody watches."""
    columns = (TextColumn("replays"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replays", total=len(jobs))
        return sweep(trace, jobs, workers=workers, done=lambda: bar.advance(task))


def headline(table: ReplayTable) -> str:
    """Say what was replayed."""
    return (
        f"{table.trace}: {table.requests:,} requests, {table.block_references:,} references to blocks "
        f"of {table.block_tokens} tokens"
    )


def render(rows: list[ReplayRow]) -> Table:
    """Draw the table, sizes together, ceilings last in each."""
    table = Table("policy", box=None)
    for name in ("tokens", "hit blocks", "hit tokens", "saved s", "saved", "in", "out"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.policy,
            format_count(row.capacity_tokens) if row.capacity_tokens else "no bound",
            f"{row.hit_blocks:.4f}",
            f"{row.hit_tokens:.4f}",
            f"{row.saved_prefill_s:,.0f}",
            f"{row.saved_prefill:.4f}",
            format_nbytes(row.bytes["dram_in"]) if row.bytes else "-",
            format_nbytes(row.bytes["dram_out"]) if row.bytes else "-",
            style="dim" if row.ceiling else None,
        )
    return table
