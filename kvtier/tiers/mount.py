"""What a path lies on: a disk of this machine, or a file system that others serve."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from kvtier.errors import ConfigError

NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "coda", "ncpfs"),
        *("lustre", "ceph", "glusterfs", "beegfs", "gpfs", "wekafs", "orangefs", "pvfs2"),
        *("ocfs2", "gfs2", "panfs"),
    }
)
"""File systems that other machines, or other guests of the host, may have mounted too."""

_LOCAL_FUSE = frozenset(
    f"fuse.{name}"
    for name in (
        *("fuse-overlayfs", "overlayfs", "mergerfs", "unionfs", "unionfs-fuse", "bindfs"),
        *("gocryptfs", "cryfs", "encfs", "ntfs-3g", "zfs"),
    )
)
"""What lies on a disk of this machine, unless somebody has put it on a network file system. Any other FUSE is a client
of some server (juicefs, sshfs, s3fs, rclone), or nobody knows."""


class Mount(NamedTuple):
    """What a path is on."""

    point: str
    kind: str
    device: str  # major:minor

    @property
    def is_shared(self) -> bool:
        """Whether other machines may have it mounted too."""
        fuse = self.kind == "fuse" or self.kind.startswith("fuse.")
        return self.kind in NETWORK or (fuse and self.kind not in _LOCAL_FUSE)


def objection_to(mount: Mount) -> str:
    """Say why a tier of files may not lie there, and what to do; nothing where it may."""
    if not mount.is_shared:
        return ""
    return (
        f"{mount.point} is {mount.kind}, which other machines may use too: there a lock may keep nobody out, and two "
        "engines would remove each other's records; choose a path on a local disk, or set 'exclusive: true' if no other "
        "engine ever has this directory"
    )


def refuse_network(path: Path, where: str, *, exclusive: bool) -> None:
    """Raise a ConfigError, which says `where`, if others may have the file system of `path` too, unless it is `exclusive`.

    Raises:
        OSError: the path cannot be looked at.
    """
    why = "" if exclusive else objection_to(mount_of(nearest_folder(path)))
    if why:
        raise ConfigError(f"{where}: {path}: {why}")


def mount_of(path: Path, root: Path = Path("/")) -> Mount:
    """Find the mount that a path is on, by the kernel's list below `root`.

    Raises:
        OSError: the path cannot be looked at.
    """
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    best = Mount("/", "unknown", number)
    real = path.resolve()
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            fields = left.split()
            point = fields[4].replace("\\040", " ")
            if real.is_relative_to(point) and len(point) >= len(best.point):
                best = Mount(point, right.split()[0], fields[2])
    return best


def nearest_folder(path: Path) -> Path:
    """Return a path itself, or the first folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
