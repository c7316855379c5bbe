"""Small file systems of their own, for tests of media that are full or read-only."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs. `fill` leaves so many bytes free; `free` takes the filling away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounted = True
        self._filling = path / "filling"

    def fill(self, left: int = 0) -> None:
        found = os.statvfs(self.path)
        with self._filling.open("ab") as file:
            file.write(bytes(max(0, found.f_bavail * found.f_frsize - left)))

    def free(self) -> None:
        self._filling.unlink()

    def detach(self) -> None:
        """Take it from its place, though files of it are open."""
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self.mounted = False

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@contextmanager
def small_disk(path: Path, options: str) -> Iterator[SmallDisk]:
    """Mount one, where that is allowed; the test is skipped elsewhere."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "kvtier-test", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount was refused: {done.stderr.strip()}")
    disk = SmallDisk(path)
    try:
        yield disk
    finally:
        if disk.mounted:
            subprocess.run(["umount", path], check=True)
