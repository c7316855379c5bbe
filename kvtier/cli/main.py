"""The command line: one module per command; none imports torch or vLLM before it is run.

A module offers a function named like its command, or an `app` where the command has commands of its own.
"""

import importlib
import inspect
import io
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvtier import __version__
from kvtier.cli.outputs import with_file
from kvtier.errors import ConfigError, KvtierError, one_line, reason

COMMANDS = {
    "config": "kvtier.cli.config",
    "check": "kvtier.cli.check",
    "clear": "kvtier.cli.clear",
    "doctor": "kvtier.cli.doctor",
    "top": "kvtier.cli.top",
    "status": "kvtier.cli.top",
    "bench": "kvtier.cli.bench",
    "demo": "kvtier.cli.demo",
    "replay": "kvtier.cli.replay",
    "trace": "kvtier.cli.trace",
    "plan": "kvtier.cli.plan",
}


class Group(TyperGroup):
    """The commands, with what all their words have in common."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command line."""
        return super().parse_args(ctx, with_file(args))


def build() -> typer.Typer:
    """Assemble the application from its commands."""
    app = typer.Typer(
        name="kvtier",
        cls=Group,
        no_args_is_help=True,
        context_settings={"help_option_names": ["--help", "-h"]},
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_kvtier)
    for name, where in COMMANDS.items():
        module = importlib.import_module(where)
        command = getattr(module, name, None)
        if inspect.isfunction(command):
            app.command(name)(command)
        else:
            app.add_typer(module.app, name=name)
    return app


def main() -> None:
    """Run the command line; what kvtier refuses on purpose is a message and status 1, not a trace."""
    # SIGTERM cleans up, as ^C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        build()()
    except KeyboardInterrupt:  # before a command has begun; within one typer takes it
        sys.exit(128 + signal.SIGINT)
    except ConfigError as exc:
        for mistake in exc.mistakes:
            typer.echo(f"kvtier: {mistake}", err=True)
        sys.exit(1)
    except (KvtierError, OSError) as exc:
        file = exc.filename if isinstance(exc, OSError) else None
        typer.echo(
            f"kvtier: {one_line(f'{file}: {reason(exc)}' if file else reason(exc))}", err=True
        )
        sys.exit(1)


def _kvtier(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """More KV cache than the GPU has, in tiers below it."""
    if version:
        typer.echo(f"kvtier {__version__}")
        raise typer.Exit
