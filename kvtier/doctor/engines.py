"""Engines that run here now: whether kvtier runs in them, as it is meant, and where the pages of their arenas really are."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.topology.sysfs import text
from kvtier.units import format_nbytes

_COUNT = re.compile(r" N(\d+)=(\d+)")
_PAGE = re.compile(r"kernelpagesize_kB=(\d+)")
_ARENA = "memfd:kvtier"
SIGN_OF_LIFE = "kvtier: chunks of"
"""How the line begins that every engine logs at its start if kvtier runs in it."""


def servers(patient: Patient) -> Iterator[Finding]:
    """Look at every process that is told to run kvtier: whether any that it started holds an arena, and what failures do."""
    proc = patient.root / "proc"
    told = {pid: _parent(proc, pid) for pid in _pids(proc) if _is_told(proc / str(pid))}
    for pid in sorted(told.keys() - set(told.values())):  # not what only starts it, such as a shell
        yield from _policy(proc, pid)
        holders = [member for member in _family(proc, pid) if _holds_arena(proc / str(member))]
        if holders:
            who = ", ".join(map(str, holders))
            yield Finding("engine", Level.OK, f"process {pid}: kvtier runs in it; arenas in {who}")
            continue
        what = f"process {pid} is told to run kvtier, and none that it started holds an arena"
        advice = (
            f"it may still start, or be another user's. Otherwise its log says why: where kvtier runs, there is a line "
            f"'{SIGN_OF_LIFE} ...'. With --kv-offloading-size vLLM runs its own offload in place of kvtier"
        )
        yield Finding("engine", Level.WARN, what, advice)


def arenas(patient: Patient) -> Iterator[Finding]:
    """Look at every process that holds an arena, by the I/O process that it started."""
    for pid in sorted({*_workers(patient.root / "proc")} - {0}):
        held = _pages(patient.root / "proc" / str(pid) / "numa_maps")
        if held is None:
            advice = "run it as the engine's user"
            yield Finding(
                "engine", Level.WARN, f"process {pid}: its memory is not readable", advice
            )
            continue
        where = ", ".join(f"{format_nbytes(n)} on node {node}" for node, n in sorted(held.items()))
        yield Finding("engine", Level.OK, f"process {pid}: arena: {where or 'not touched yet'}")


def _pids(proc: Path) -> list[int]:
    return sorted(int(folder.name) for folder in proc.glob("[0-9]*"))


def _parent(proc: Path, pid: int) -> int:
    """Name the process that started one; 0 where that is not known."""
    fields = (text(proc / str(pid) / "stat") or "").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _family(proc: Path, pid: int) -> list[int]:
    """Name a process and all that it started, and those started."""
    parents = {each: _parent(proc, each) for each in _pids(proc)}
    family = [pid]
    for member in family:
        family += [each for each, parent in parents.items() if parent == member]
    return family


def _is_told(folder: Path) -> bool:
    command = text(folder / "cmdline") or ""
    return "--kv-transfer-config" in command and "KVTierConnector" in command


def _policy(proc: Path, pid: int) -> Iterator[Finding]:
    """Warn where another connector's configuration stands around kvtier's, and lets requests fail."""
    command = text(proc / str(pid) / "cmdline") or ""
    given = command.partition("--kv-transfer-config")[2][1:].partition("\0")[0]
    try:
        outer = json.loads(given)
        kills = outer["kv_connector"] != "KVTierConnector" and (
            outer.get("kv_load_failure_policy") != "recompute"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    if kills:
        yield Finding(
            "engine",
            Level.WARN,
            f"process {pid}: a request ends with an error where kvtier cannot load what it promised",
            f'write "kv_load_failure_policy": "recompute" beside {outer["kv_connector"]}, not beside KVTierConnector',
        )


def _holds_arena(folder: Path) -> bool:
    return _ARENA in (text(folder / "maps") or "")


def _workers(proc: Path) -> Iterator[int]:
    """Name the parents of I/O processes."""
    for pid in _pids(proc):
        if "kvtier.io_process.main" in (text(proc / str(pid) / "cmdline") or ""):
            yield _parent(proc, pid)


def _pages(numa_maps: Path) -> Counter[int] | None:
    """Bytes of arena by node, as the kernel counts what this process has mapped of it."""
    found: Counter[int] = Counter()
    lines = text(numa_maps)
    if lines is None:
        return None
    for line in lines.splitlines():
        if _ARENA in line:
            size = _PAGE.search(line)
            for node, pages in _COUNT.findall(line):
                found[int(node)] += int(pages) * (int(size[1]) if size else 4) << 10
    return found
