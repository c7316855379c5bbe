"""`kvtier doctor`: what is wrong with this machine, and what to do about it, on one screen."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from kvtier import topology
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, save_json
from kvtier.config import load
from kvtier.doctor import devices, disks, engines, memory, probes, software
from kvtier.doctor.finding import Check, Finding, Level, Patient
from kvtier.errors import ConfigError

CHECKS: tuple[Check, ...] = (
    *(software.vllm, software.kernel, devices.gpus, devices.drives, devices.cxl),
    *(memory.nodes, memory.neighbours, probes.binding, devices.cross_check),
    *(memory.room, memory.huge_pages, memory.memlock, disks.paths, engines.servers, engines.arenas),
)
_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="The YAML that an engine is to run with here.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Look at GPUs, memory, disks and kernel as kvtier will use them; status 1 if something cannot work."""
    check_writable(json_file)
    found = examine(config)
    console_beside(json_file).print(_table(found))
    save_json(json_file, [finding._asdict() for finding in found])
    if any(finding.level is Level.FAIL for finding in found):
        raise typer.Exit(1)


def examine(file: Path | None) -> list[Finding]:
    """Run every check; one that breaks is a finding too."""
    patient, found = _admit(file)
    for check in CHECKS:
        try:
            found += check(patient)
        except Exception as exc:
            name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
            found.append(Finding(name, Level.WARN, f"could not look: {exc!r}", "please report it"))
    return found


def _admit(file: Path | None) -> tuple[Patient, list[Finding]]:
    patient = Patient(nvml=topology.ask_nvml())
    if file is None:
        return patient, []
    try:
        patient = patient._replace(config=load(file))
        return patient, [Finding("config", Level.OK, f"{file} is well formed")]
    except ConfigError as exc:
        return patient, [Finding("config", Level.FAIL, str(exc), "kvtier config check says more")]


def _table(found: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in found:
        level = f"[{_COLOURS[finding.level]}]{finding.level}[/]"
        advice = f"\n-> {finding.advice}" if finding.advice else ""
        table.add_row(level, escape(finding.area), escape(finding.what + advice))
    return table
