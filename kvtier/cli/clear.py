"""`kvtier clear`: remove what file tiers keep in a directory."""

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from kvtier.cli.check import bases_of_tier
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, plain, save_json
from kvtier.errors import ConfigError
from kvtier.tiers import directory
from kvtier.units import format_nbytes

_DAY_S = 86400


class Namespace(msgspec.Struct):
    """The records of one model, weights and settings."""

    path: str
    nbytes: int
    idle_days: float  # since an engine last opened it
    removed: bool = False


def clear(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A file tier's path.")],
    idle_days: Annotated[
        float, typer.Option(min=0, help="Only what no engine has opened for so many days.")
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Remove the records that file tiers keep below DIR, of every model; while no engine uses it, and nothing else there."""
    check_writable(json_file)
    bases = bases_of_tier(path)
    with directory.no_engine(bases):
        found = [each for each in listed(bases) if each.idle_days >= idle_days]
    console = console_beside(json_file, soft_wrap=True)
    console.print(_table(path, found) if found else f"{plain(path)}: nothing to remove")
    if found and not yes:
        _ask(path, found)
    with directory.no_engine(bases):  # one may have started while the question stood
        left = remove(bases, found)
    save_json(json_file, found)
    if left:
        raise ConfigError(f"{left[0]} could not be removed whole; who owns what is in it?")
    if found:
        nbytes = format_nbytes(sum(each.nbytes for each in found))
        console.print(f"removed {nbytes} of {len(found)} namespace(s)")


def listed(bases: list[Path]) -> list[Namespace]:
    """Weigh every namespace, the one that was idle longest first."""
    now = time.time()
    every = sorted(found for base in bases for found in directory.foreign(base, own=""))
    return [
        Namespace(str(each.path), each.nbytes, max(0.0, now - each.opened) / _DAY_S)
        for each in every
    ]


def remove(bases: list[Path], found: list[Namespace]) -> list[Path]:
    """Remove namespaces, and what crashes and resets left; list what is still there."""
    for each in found:
        each.removed = directory.discard(Path(each.path))
    for base in bases:
        for trash in directory.trash_in(base):
            directory.remove_tree(trash)
    kept = [Path(each.path) for each in found if not each.removed]
    return kept + [trash for base in bases for trash in directory.trash_in(base)]


def _ask(path: Path, found: list[Namespace]) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("clear: nobody can be asked here; say --yes to remove what is listed")
    nbytes = format_nbytes(sum(each.nbytes for each in found))
    typer.confirm(f"Remove {nbytes} below {path}?", abort=True, err=True)


def _table(path: Path, found: list[Namespace]) -> Table:
    table = Table("namespace", title=plain(path))
    for heading in ("bytes", "days since it was opened"):
        table.add_column(heading, justify="right")
    for each in found:
        name = plain(Path(each.path).relative_to(path))
        table.add_row(name, format_nbytes(each.nbytes), f"{each.idle_days:.1f}")
    return table
