"""The file systems below the configured paths: whether they take what a file tier does to them."""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvtier.doctor.finding import Finding, Level, Patient
from kvtier.units import format_nbytes

_POOR = {
    "overlay": "a container's own layer: mount a volume or a host path there",
    "tmpfs": "that is memory, not a disk: use kind: memory, or a path on a disk",
    "ramfs": "that is memory, not a disk: use kind: memory, or a path on a disk",
}


class Mount(NamedTuple):
    """What a path is on."""

    point: str
    kind: str
    device: str  # major:minor


def paths(patient: Patient) -> Iterator[Finding]:
    """Look at the path of every configured tier that has one."""
    for tier in patient.config.tiers if patient.config else ():
        path = tier.options.get("path")
        if isinstance(path, str):
            yield from look(Path(path), tier.capacity or 0, patient.root)


def look(path: Path, capacity: int, root: Path = Path("/")) -> Iterator[Finding]:
    """Judge one path for so many bytes of records."""
    area = f"disk {path}"
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(area, Level.FAIL, f"{there} is not writable", "chown it to the engine's user")
        return
    mount = mount_of(there, root)
    advice = _POOR.get(mount.kind, "")
    yield Finding(area, Level.WARN if advice else Level.OK, f"on {mount.kind}", advice)
    if refused := _direct(there):
        advice = "records go through the page cache; ext4 and xfs take O_DIRECT"
        yield Finding(area, Level.WARN, f"no O_DIRECT: {refused}", advice)
    if rotational(mount.device, root):
        advice = "reads of many chunks at once will be slow; use an SSD"
        said = "the kernel says that the disk rotates, as it does of many virtual ones"
        yield Finding(area, Level.WARN, said, advice)
    yield room(path, capacity)


def room(path: Path, capacity: int) -> Finding:
    """Judge whether so many bytes of records have room at a path, those that are there included."""
    area = f"disk {path}"
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    stat = os.statvfs(there)
    free = stat.f_bavail * stat.f_frsize
    held = sum(file.stat().st_size for file in path.rglob("*.kvt")) if path.is_dir() else 0
    said = f"{format_nbytes(free)} free, {format_nbytes(held)} of records, for {format_nbytes(capacity)}"
    if free + held < capacity:
        return Finding(area, Level.WARN, said, "writes will fail when it is full: lower capacity")
    return Finding(area, Level.OK, said)


def mount_of(path: Path, root: Path = Path("/")) -> Mount:
    """Find the mount that a path is on."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    best = Mount("/", "unknown", number)
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            fields = left.split()
            point = fields[4].replace("\\040", " ")
            if path.resolve().is_relative_to(point) and len(point) >= len(best.point):
                best = Mount(point, right.split()[0], fields[2])
    return best


def rotational(device: str, root: Path = Path("/")) -> bool:
    """Whether a block device, or the disk that it is a partition of, rotates."""
    block = root / "sys/dev/block" / device
    for folder in (block, block.resolve().parent):
        file = folder / "queue/rotational"
        if file.is_file():
            return file.read_text().strip() == "1"
    return False


def _direct(folder: Path) -> str:
    """Write and read a page with O_DIRECT; return why that failed, or nothing."""
    page = mmap.mmap(-1, 4096)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".kvtier-doctor-") as file:
            fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
            try:
                os.pwritev(fd, [page], 0)
                os.preadv(fd, [page], 0)
            finally:
                os.close(fd)
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""
