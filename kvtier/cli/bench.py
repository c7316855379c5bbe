"""`kvtier bench`: measure what could be configured, on the machine that it would run on."""

import typer

from kvtier.cli.bench_codec import codec
from kvtier.cli.bench_tiers import tiers

app = typer.Typer(help="Measure.", no_args_is_help=True)
app.command()(codec)
app.command()(tiers)
