"""The options that every command takes which reads a trace, and how its mistakes are said."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from kvtier.cli.options import positive
from kvtier.trace.files import Skipped, TraceFile
from kvtier.trace.formats import FORMATS, Drawing
from kvtier.trace.trace import Trace

Format = Annotated[str, typer.Option(help=f"auto, {', '.join(FORMATS)}.")]
Chunk = Annotated[
    int | None,
    typer.Option(min=1, help="Replay in chunks of so many tokens; default: the file's blocks."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]
SessionRate = Annotated[
    float, typer.Option(help="Sessions per second, where the file has no clock of its own.")
]

RATE = Drawing().session_rate


def open_trace(
    path: Path,
    format: str,
    chunk_tokens: int | None = None,
    seed: int = 0,
    session_rate: float = RATE,
) -> tuple[TraceFile, Trace]:
    """Read a trace; a file that cannot be read is a ConfigError."""
    positive("--session-rate", session_rate)
    file = TraceFile(path, format, Drawing(seed=seed, session_rate=session_rate))
    return file, file.load(chunk_tokens)


def say_skipped(skipped: Skipped, console: Console) -> None:
    """Name the malformed rows."""
    if skipped.count:
        console.print(f"{skipped.count:,} malformed rows were skipped:", style="yellow")
    for number, why in skipped.rows:
        console.print(f"  line {number}: {escape(why)}")
