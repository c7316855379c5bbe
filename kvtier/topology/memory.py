"""How much memory there is for us: the machine's, or less where a cgroup says so."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvtier.topology.sysfs import ROOT, text

_NO_LIMIT = 1 << 60  # cgroup v1 says so with a number just below 2**63


class _Limits(NamedTuple):
    """The files of one cgroup that say how much it may take, and has."""

    folder: Path
    most: str
    used: str


def free_nbytes(root: Path = ROOT) -> int:
    """Return the bytes that may still be taken without swapping: the machine's, or less where a cgroup says so."""
    rooms = [room for limits in _cgroups(root) for room in _room(limits)]
    return max(0, min([_available(root), *rooms]))


def limit_nbytes(root: Path = ROOT) -> int | None:
    """Return the tightest limit that a cgroup sets on this process; None where there is none."""
    found = [_most(limits) for limits in _cgroups(root)]
    return min((most for most in found if most is not None), default=None)


def _available(root: Path) -> int:
    for line in (text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups(root: Path) -> Iterator[_Limits]:
    """Walk from the process's memory cgroups, v2 and v1, to their roots."""
    rows = (text(root / "proc/self/cgroup") or "").splitlines()
    for _, controllers, path in (row.split(":", 2) for row in rows):
        if not controllers:
            base, most, used = "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, most, used = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        top = root / base
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(top):
                break
            yield _Limits(folder, most, used)


def _most(limits: _Limits) -> int | None:
    most = text(limits.folder / limits.most) or "max"
    return None if most == "max" or int(most) >= _NO_LIMIT else int(most)


def _room(limits: _Limits) -> list[int]:
    """Bytes below one limit; page cache that the kernel would drop counts as free."""
    try:
        most = _most(limits)
        if most is None:
            return []
        stat = dict(
            line.split() for line in (text(limits.folder / "memory.stat") or "").splitlines()
        )
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
        return [most - int((limits.folder / limits.used).read_text()) + cache]
    except (OSError, ValueError):
        return []
