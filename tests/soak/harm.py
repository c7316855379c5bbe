"""What the soak does to a tier's directory, its disk and its processes."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvtier.demo.process import session
from kvtier.types import PAGE
from tests.engine.rig import SLOT, Disk

_ERRORS = ("EIO", "ENOSPC", "EMFILE", "EACCES", "ESTALE")
_BALLAST = "ballast"


class Harm:
    """Does harm by chance, and counts it; `heal` takes away what would stay."""

    def __init__(self, rng: random.Random, disk: Disk, done: Counter[str]) -> None:
        self._rng = rng
        self._disk = disk
        self._done = done
        self._stopped: dict[int, float] = {}  # process: when it goes on
        self._added: dict[int, int] = {}  # by inode: bytes added to a record behind the tier's back

    def records(self) -> None:
        """Damage some records."""
        found = sorted(self._disk.records())
        for path in self._rng.sample(found, min(len(found), self._rng.choice((1, 1, 2, 5)))):
            ways = (self._flip, self._cut, self._extend, self._zero, self._swap, self._unlink)
            way = self._rng.choice(ways)
            with suppress(OSError):  # evicted meanwhile, or the disk is full
                way(path)
                self._done[f"record: {way.__name__.strip('_')}"] += 1

    def directory(self) -> None:
        """Remove what is in the directory, or in one of its namespaces."""
        inside = [path for path in self._disk.path.iterdir() if path.name != _BALLAST]
        victims = (
            inside if self._rng.random() < 0.5 else self._rng.sample(inside, min(1, len(inside)))
        )
        for path in victims:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.endswith(".lock"):
                path.unlink(missing_ok=True)
        self._done["directory: rm -rf"] += 1

    def full(self) -> None:
        """Fill the disk, if it is one of its own."""
        if not self._disk.mounted:
            return
        with suppress(OSError), (self._disk.path / _BALLAST).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        self._done["disk: full"] += 1

    def faults(self) -> None:
        """Let reads and writes fail, wait or hang from now on, or no more."""
        rng = self._rng
        some: dict[str, Callable[[], object]] = {
            "read_errno": lambda: rng.choice(_ERRORS),
            "write_errno": lambda: rng.choice(_ERRORS),
            "read_delay_s": lambda: rng.uniform(0, 0.3),
            "write_delay_s": lambda: rng.uniform(0, 0.3),
            "hang": lambda: True,
        }
        chosen = rng.sample(sorted(some), rng.choice((0, 1, 1, 2)))
        self._disk.fail(**{name: some[name]() for name in chosen})
        for name in chosen or ["none"]:
            self._done[f"disk: {name}"] += 1

    def process(self, engine: int) -> None:
        """Kill, end or stop the I/O process of an engine."""
        pid = io_process(engine)
        if pid is None or pid in self._stopped:
            return
        number = self._rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP))
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            self._done[f"I/O process: {number.name}"] += 1
            if number is signal.SIGSTOP:
                self._stopped[pid] = time.monotonic() + self._rng.uniform(0.2, 4)

    def added(self) -> int:
        """Count the bytes of records that are there because of `_extend`."""
        there = self._disk.sizes()
        self._added = {inode: more for inode, more in self._added.items() if inode in there}
        return sum(self._added.values())

    def pass_time(self, *, all_of_it: bool = False) -> None:
        """Let stopped processes go on whose time has come."""
        for pid, until in list(self._stopped.items()):
            if all_of_it or time.monotonic() > until:
                del self._stopped[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def heal(self) -> None:
        """End every harm that lasts; damaged records stay."""
        self._disk.fail()
        self.pass_time(all_of_it=True)
        (self._disk.path / _BALLAST).unlink(missing_ok=True)

    def _flip(self, path: Path) -> None:
        with path.open("r+b") as file:
            at = self._rng.randrange(max(1, path.stat().st_size))
            file.seek(self._rng.choice((at, at % PAGE)))
            if byte := file.read(1):
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1 << self._rng.randrange(8)]))

    def _cut(self, path: Path) -> None:
        os.truncate(path, self._rng.randrange(path.stat().st_size + 1))

    def _extend(self, path: Path) -> None:
        found, more = path.stat(), self._rng.choice((1, PAGE, SLOT))
        os.truncate(path, found.st_size + more)
        self._added[found.st_ino] = self._added.get(found.st_ino, 0) + more

    def _zero(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))

    def _swap(self, path: Path) -> None:
        other = self._rng.choice(sorted(self._disk.records()))
        if other != path:
            aside = path.with_suffix(".aside")
            path.rename(aside)
            with suppress(FileNotFoundError):
                other.rename(path)
            aside.rename(other)

    def _unlink(self, path: Path) -> None:
        path.unlink()


def io_process(engine: int) -> int | None:
    """Find the I/O process of an engine, if there is one now."""
    for pid in session(engine):
        with suppress(OSError):
            if b"kvtier.io_process.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None
