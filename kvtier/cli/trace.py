"""`kvtier trace`: make synthetic traces, and say what a trace is like."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from kvtier.cli.options import positive
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, save_json
from kvtier.cli.replay import counts
from kvtier.cli.tracefile import RATE, Chunk, Format, Seed, SessionRate, open_trace, say_skipped
from kvtier.sim.statistics import QUANTILES, TraceStats, describe
from kvtier.trace.sessions import Drawn, drawn, templates
from kvtier.trace.synth import resampled, stream, write
from kvtier.units import format_count

_DRAWN = Drawn()

app = typer.Typer(help="Make traces, and say what they are like.", no_args_is_help=True)


@app.command()
def synth(  # noqa: PLR0913 - a command's options are its arguments
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where it goes; .gz and .zst compress.")
    ],
    requests: Annotated[int, typer.Option(min=1, help="How many.")] = 1_000_000,
    seed: Seed = 0,
    source: Annotated[
        Path | None, typer.Option(help="Resample the sessions of this trace; else they are drawn.")
    ] = None,
    format: Format = "auto",
    session_rate: Annotated[float, typer.Option(help="Drawn: sessions per s.")] = (
        _DRAWN.session_rate
    ),
    turns: Annotated[float, typer.Option(min=1, help="Drawn: mean turns.")] = _DRAWN.turns,
    think: Annotated[float, typer.Option(help="Drawn: median s of thinking.")] = _DRAWN.think_s[0],
    user_tokens: Annotated[float, typer.Option(help="Drawn: median of a user's text.")] = (
        _DRAWN.user_tokens[0]
    ),
    output_tokens: Annotated[float, typer.Option(help="Drawn: median of an answer.")] = (
        _DRAWN.output_tokens[0]
    ),
    systems: Annotated[int, typer.Option(min=1, help="Drawn: shared system prompts.")] = (
        _DRAWN.systems
    ),
    system_tokens: Annotated[int, typer.Option(min=0, help="Drawn: tokens of each.")] = (
        _DRAWN.system_tokens
    ),
    block_tokens: Annotated[int, typer.Option(min=1, help="Drawn: tokens of a block.")] = 512,
) -> None:
    """Write a synthetic trace, in memory that does not grow with it."""
    check_writable(output)
    for option, value in {
        "--session-rate": session_rate,
        "--think": think,
        "--user-tokens": user_tokens,
        "--output-tokens": output_tokens,
    }.items():
        positive(option, value)
    if source is None:
        model = Drawn(
            session_rate=session_rate,
            turns=turns,
            think_s=(think, _DRAWN.think_s[1]),
            user_tokens=(user_tokens, _DRAWN.user_tokens[1]),
            output_tokens=(output_tokens, _DRAWN.output_tokens[1]),
            systems=systems,
            system_tokens=system_tokens,
        )
        sessions = drawn(seed, block_tokens, model)
    else:
        _, real = open_trace(source, format, None, seed, session_rate)
        block_tokens = real.block_tokens
        sessions = resampled(templates(real), seed)
    n = write(output, stream(sessions, requests), block_tokens)
    typer.echo(f"{output}: {n:,} requests, blocks of {block_tokens} tokens")


@app.command()
def stats(  # noqa: PLR0913 - a command's options are its arguments
    trace: Annotated[Path, typer.Argument(help="The trace.", show_default=False)],
    source: Annotated[Path | None, typer.Option(help="Compare with this one.")] = None,
    format: Format = "auto",
    capacity_tokens: Annotated[str, typer.Option(help="Sizes, by comma.")] = "1M,3M,10M",
    requests: Annotated[int, typer.Option(help="Of each, the first so many; 0: all.")] = 0,
    chunk_tokens: Chunk = None,
    json_file: JsonFile = None,
    seed: Seed = 0,
    session_rate: SessionRate = RATE,
) -> None:
    """Say what a trace is like: lengths, gaps, and LRU's hits by size; beside its source, if there is one."""
    sizes = counts(capacity_tokens, "--capacity-tokens")
    check_writable(json_file)
    made: list[TraceStats] = []
    console = console_beside(json_file)
    for path in (trace, source):
        if path is not None:
            file, loaded = open_trace(path, format, chunk_tokens, seed, session_rate)
            say_skipped(file.skipped, console)
            made.append(describe(loaded.first(requests) if requests else loaded, sizes))
    console.print(table(made))
    save_json(json_file, made)


def table(made: list[TraceStats]) -> Table:
    """Draw one line per quantity; a second trace stands beside the first."""
    names = ["trace", "source"][: len(made)]
    drawn_table = Table("", box=None)
    for name in names:
        drawn_table.add_column(name, justify="right")
    for what, values in _lines(made):
        drawn_table.add_row(what, *values)
    return drawn_table


def _lines(made: list[TraceStats]) -> list[tuple[str, list[str]]]:
    lines = [
        ("requests", [f"{one.requests:,}" for one in made]),
        ("seconds", [f"{one.seconds:,.0f}" for one in made]),
        ("blocks referenced", [f"{one.block_references:,}" for one in made]),
        ("hit, infinite", [f"{one.infinite_hit:.4f}" for one in made]),
    ]
    for size in made[0].lru_hits:
        hits = [f"{one.lru_hits[size]:.4f}" for one in made]
        lines.append((f"hit, LRU, {format_count(size)} tokens", hits))
    for i, quantity in enumerate(made[0].distributions):
        each = [one.distributions[i] for one in made]
        heads = f"{quantity.name}, {quantity.unit}"
        lines.append((f"{heads}: mean", [f"{one.mean:,.1f}" for one in each]))
        for j, percent in enumerate(QUANTILES):
            lines.append((f"  {percent} %", [f"{one.quantiles[j]:,.1f}" for one in each]))
    return lines
