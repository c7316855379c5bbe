"""The file systems below the configured paths: whether they take what a file tier does to them."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from kvtier.config import Config
from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.errors import FULL, reason
from kvtier.tiers.directory import SUFFIX
from kvtier.tiers.file import refuses_direct
from kvtier.tiers.mount import Mount, mount_of, nearest_folder, objection_to
from kvtier.tiers.ownership import objection
from kvtier.units import format_nbytes

_POOR = {
    "overlay": "a container's own layer: mount a volume or a host path there",
    "tmpfs": "that is memory, not a disk: use kind: memory, or a path on a disk",
    "ramfs": "that is memory, not a disk: use kind: memory, or a path on a disk",
}


_ALONE = "'exclusive: true' promises that no other engine uses this directory"


class Verdict(NamedTuple):
    """What is to be said of the paths of a configuration, and those where nothing can be written."""

    findings: list[Finding]
    failed: set[Path]


def paths(patient: Patient) -> Iterator[Finding]:
    """Look at the path of every configured tier that has one, and at the room on each of their disks."""
    if patient.config:
        yield from judge(patient.config, patient.root).findings


def judge(config: Config, root: Path = Path("/")) -> Verdict:
    """Judge every path, and the room on their disks where something can be written."""
    alone = {
        Path(str(tier.options["path"])) for tier in config.tiers if tier.options.get("exclusive")
    }
    looks = {path: list(look(path, root, exclusive=path in alone)) for path in _places(config)}
    failed = {path for path, found in looks.items() if any(map(_fails, found))}
    return Verdict([*chain(*looks.values()), *rooms(config, failed)], failed)


def failure(path: Path) -> str:
    """Say why nothing can be written at `path`, and what to do; nothing, where it can."""
    return next((f"{each.what}: {each.advice}" for each in look(path) if _fails(each)), "")


def look(path: Path, root: Path = Path("/"), *, exclusive: bool = False) -> Iterator[Finding]:
    """Judge one path: whether it can be written, and on what it is; `exclusive` to one engine, says its user."""
    area = f"disk {path}"
    try:
        there = nearest_folder(path)
        read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
        mount = mount_of(there, root)
        why = objection(path)
    except OSError as exc:
        yield Finding(
            area, Level.FAIL, f"cannot be looked at: {reason(exc)}", "choose another path"
        )
        return
    if read_only:
        said = f"{there} is on a read-only file system"
        advice = (
            "mount it writable, or choose another path; until then engines start without the tier"
        )
        yield Finding(area, Level.FAIL, said, advice)
        return
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(area, Level.FAIL, f"{there} is not writable", "chown it to the engine's user")
        return
    if why:
        said, _, fix = why.partition("; ")
        yield Finding(area, Level.FAIL, said, fix)
        return
    if shared := objection_to(mount):
        said, _, fix = shared.rpartition("; ")
        yield Finding(
            area, Level.WARN if exclusive else Level.FAIL, said, _ALONE if exclusive else fix
        )
        if not exclusive:
            return
    yield from _look_at_medium(area, there, mount, root)


def _look_at_medium(area: str, there: Path, mount: Mount, root: Path) -> Iterator[Finding]:
    advice = _POOR.get(mount.kind, "")
    yield Finding(area, Level.WARN if advice else Level.OK, f"on {mount.kind}", advice)
    try:
        refused = refuses_direct(there)
    except OSError as exc:
        full = exc.errno in FULL
        advice = "choose another path; until then engines start without the tier"
        if full:
            advice = "make room there, or choose another path; until then engines write nothing into the tier"
        said = f"nothing can be written: {reason(exc)}"
        yield Finding(area, Level.WARN if full else Level.FAIL, said, advice)
        refused = ""
    if refused:
        advice = "records go through the page cache; ext4 and xfs take O_DIRECT"
        yield Finding(area, Level.WARN, f"no O_DIRECT: {refused}", advice)
    if rotational(mount.device, root):
        advice = "reads of many chunks at once will be slow; use an SSD"
        said = "the kernel says that the disk rotates, as it does of many virtual ones"
        yield Finding(area, Level.WARN, said, advice)


def rooms(config: Config, failed: Collection[Path] = ()) -> Iterator[Finding]:
    """Judge whether what the tiers of each disk may take has room there, the records that are there included."""
    on: dict[int, dict[Path, int]] = {}
    sound = ((path, nbytes) for path, nbytes in _places(config).items() if path not in failed)
    for path, capacity in sound:
        with contextlib.suppress(OSError):
            on.setdefault(os.stat(nearest_folder(path)).st_dev, {})[path] = capacity
    for capacities in on.values():
        area = f"disk {', '.join(map(str, capacities))}"
        try:
            free = shutil.disk_usage(nearest_folder(next(iter(capacities)))).free
            held = sum(_held(path) for path in capacities)
        except OSError as exc:
            yield Finding(
                area, Level.FAIL, f"cannot be looked at: {reason(exc)}", "choose another path"
            )
            continue
        capacity = sum(capacities.values())
        said = f"{format_nbytes(free)} free, {format_nbytes(held)} of records, for {format_nbytes(capacity)}"
        if free + held < capacity:
            advice = "the tier will hold what there is room for, and no more: lower capacity"
            yield Finding(area, Level.WARN, said, advice)
        else:
            yield Finding(area, Level.OK, said)


def _fails(finding: Finding) -> bool:
    return finding.level is Level.FAIL


def _places(config: Config) -> dict[Path, int]:
    """Name every path with the capacity of its tier."""
    named = ((tier.options.get("path"), tier.capacity or 0) for tier in config.tiers)
    return {Path(path): capacity for path, capacity in named if isinstance(path, str)}


def _held(path: Path) -> int:
    nbytes = 0
    for file in path.rglob(f"*{SUFFIX}") if path.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # an engine at work
            nbytes += file.stat().st_size
    return nbytes


def rotational(device: str, root: Path = Path("/")) -> bool:
    """Whether a block device, or the disk that it is a partition of, rotates."""
    block = root / "sys/dev/block" / device
    for folder in (block, block.resolve().parent):
        file = folder / "queue/rotational"
        if file.is_file():
            return file.read_text().strip() == "1"
    return False
