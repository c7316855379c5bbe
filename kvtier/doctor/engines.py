"""Engines that run here now: where the pages of their arenas really are."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.topology.sysfs import text
from kvtier.units import format_nbytes

_COUNT = re.compile(r" N(\d+)=(\d+)")
_PAGE = re.compile(r"kernelpagesize_kB=(\d+)")


def arenas(patient: Patient) -> Iterator[Finding]:
    """Look at every process that holds an arena, by the I/O process that it started."""
    for pid in sorted(set(_workers(patient.root / "proc"))):
        held = _pages(patient.root / "proc" / str(pid) / "numa_maps")
        if held is None:
            advice = "run it as the engine's user"
            yield Finding(
                "engine", Level.WARN, f"process {pid}: its memory is not readable", advice
            )
            continue
        where = ", ".join(f"{format_nbytes(n)} on node {node}" for node, n in sorted(held.items()))
        yield Finding("engine", Level.OK, f"process {pid}: arena: {where or 'not touched yet'}")


def _workers(proc: Path) -> Iterator[int]:
    """Name the parents of I/O processes."""
    for folder in proc.glob("[0-9]*"):
        if "kvtier.io_process.main" in (text(folder / "cmdline") or ""):
            fields = (text(folder / "stat") or "").rpartition(")")[2].split()
            if len(fields) > 1:
                yield int(fields[1])


def _pages(numa_maps: Path) -> Counter[int] | None:
    """Bytes of arena by node, as the kernel counts what this process has mapped of it."""
    found: Counter[int] = Counter()
    lines = text(numa_maps)
    if lines is None:
        return None
    for line in lines.splitlines():
        if "memfd:kvtier" in line:
            size = _PAGE.search(line)
            for node, pages in _COUNT.findall(line):
                found[int(node)] += int(pages) * (int(size[1]) if size else 4) << 10
    return found
