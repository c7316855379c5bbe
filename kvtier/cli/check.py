"""`kvtier check`: verify, and with --fix clean, the directory of a file tier."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kvtier.cli.outputs import JsonFile, check_writable, console_beside, plain, save_json
from kvtier.errors import ConfigError
from kvtier.tiers import directory, fsck
from kvtier.tiers.fsck import Verdict
from kvtier.units import format_nbytes


class Bad(msgspec.Struct, frozen=True):
    """A file that is no good record."""

    path: str
    fault: str


class Namespace(msgspec.Struct):
    """The records of one namespace."""

    path: str
    records: int = 0
    nbytes: int = 0
    bad: int = 0


class Report(msgspec.Struct):
    """Everything that a check found; also what --json prints."""

    in_use_by: list[str]
    namespaces: list[Namespace]
    bad: list[Bad]
    leftovers: list[str]
    fixed: bool


def check(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A file tier's path.")],
    fix: Annotated[bool, typer.Option("--fix", help="Remove what is bad or left over.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Verify every record of a file tier below DIR; the status is 1 if one is bad and stays, or if there is none."""
    check_writable(json_file)
    bases = bases_of_tier(path)
    in_use_by = [holder for base in bases for holder in directory.locked_ranks(base)]
    with directory.no_engine(bases) if fix else nullcontext():
        report = examine(bases, in_use_by)
        if fix:
            remove([Path(bad.path) for bad in report.bad] + [Path(p) for p in report.leftovers])
            report.fixed = True
    _print(console_beside(json_file, soft_wrap=True), path, report)
    save_json(json_file, report)
    if not any(each.records for each in report.namespaces):
        raise ConfigError(f"{path} has no records: nothing was stored there, or it was emptied")
    if report.bad and not report.fixed:
        raise typer.Exit(1)


def bases_of_tier(path: Path) -> list[Path]:
    """List the engines' directories of a file tier; what was never the directory of one is a ConfigError."""
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory; give the `path` of a file tier")
    bases = directory.bases(path)
    if not any(map(directory.was_used, bases)):
        raise ConfigError(
            f"{path} was never the directory of a file tier; give the `path` of one, as the YAML has it"
        )
    return bases


def examine(bases: list[Path], in_use_by: list[str]) -> Report:
    """Read everything below `bases` and change nothing."""
    namespaces: dict[Path, Namespace] = {}
    for base in bases:
        for found in sorted(directory.namespaces(base)):
            namespaces[found] = Namespace(str(found))
    bad = []
    for finding in _findings(bases):
        place = finding.place
        owner = next(p for p in place.path.parents if p.name == place.namespace)
        totals = namespaces.setdefault(owner, Namespace(str(owner)))
        totals.records += 1
        totals.nbytes += finding.nbytes
        if finding.fault:
            totals.bad += 1
            bad.append(Bad(str(place.path), finding.fault))
    # What a live engine is writing just now is no leftover.
    left = [] if in_use_by else [str(p) for base in bases for p in fsck.leftovers(base)]
    return Report(in_use_by, list(namespaces.values()), bad, left, fixed=False)


def remove(paths: list[Path]) -> None:
    """Remove files and directories; what is gone already is no mistake."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _findings(bases: list[Path]) -> Iterator[Verdict]:
    places = [place for base in bases for place in fsck.places(base)]
    console = Console(stderr=True)
    for place in track(places, "reading", console=console, transient=True):
        if finding := fsck.verify(place):
            yield finding


def _print(console: Console, path: Path, report: Report) -> None:
    for holder in report.in_use_by:
        console.print(f"in use by a live engine, {holder}: only read, and it may change meanwhile")
    table = Table(title=plain(path))
    for heading in ("namespace", "records", "bytes", "bad"):
        table.add_column(heading, justify="left" if heading == "namespace" else "right")
    for found in report.namespaces:
        name = plain(Path(found.path).relative_to(path))
        table.add_row(name, str(found.records), format_nbytes(found.nbytes), str(found.bad))
    console.print(table)
    for bad in report.bad:
        console.print(f"bad: {plain(bad.path)}: {plain(bad.fault)}")
    for left in report.leftovers:
        console.print(f"left over: {plain(left)}")
    if report.fixed:
        console.print(f"removed {len(report.bad)} bad, {len(report.leftovers)} left over")
    elif report.bad:
        console.print("run again with --fix, without an engine, to remove what is bad")
