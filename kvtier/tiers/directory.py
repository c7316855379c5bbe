"""What lies in a file tier's directory beside records: locks, manifests, trash, foreign namespaces.

    <path>/[dp<i>/]r<rank>.lock                      held by the process that serves this rank (of engine <i>)
    <path>/[dp<i>/]<namespace>/manifest.json         for people; its mtime is when it was last opened
    <path>/[dp<i>/]<namespace>/r<rank>/<aa>/<key>.kvt
    <path>/[dp<i>/]<namespace>/r<rank>/partial/      records being written
    <path>/[dp<i>/].trash-<anything>                 on its way out; never read
    <path>/[dp<i>/].epoch-<namespace>-<epoch>        in which epoch the next engine starts, see `epoch`

Every process holds a shared flock on the namespace directory that it uses: nobody removes it then. Links are never
followed, and a directory is a namespace only if it has a manifest, of this format or an older one, and nothing that a
namespace does not have.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kvtier.errors import ConfigError
from kvtier.io_process.record import FORMAT
from kvtier.replacement import create, replacement
from kvtier.tier import Site

PARTIAL = "partial"
SUFFIX = ".kvt"
MANIFEST = "manifest.json"
_NAMESPACE = re.compile(r"[0-9a-f]{32}")
_IN_NAMESPACE = re.compile(r"r\d+|\.?manifest\.json.*")
_TRASH = re.compile(r"\.trash-r(\d+|None)-\d+-\d+")
_ENGINE = re.compile(r"dp\d+")
_RETRY_S = 0.1
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LOCKED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hold anybody up
_MANIFEST_NBYTES = 1 << 20


class Root:
    """The open directory of one rank in one namespace.

    Work through its descriptor follows the directory into the trash: what straddles a reset can never
    land in a directory that is read again. Closed when the last operation lets go of it.
    """

    def __init__(self, namespace: Path, rank: int, manifest: str) -> None:
        self.path = namespace / f"r{rank}"
        lock = _share(namespace)
        try:
            _describe(namespace, manifest)
            for directory in (self.path, self.path / PARTIAL):
                directory.mkdir(mode=0o700, exist_ok=True)
            self.fd = os.open(self.path, _FOLDER)
        except OSError:
            os.close(lock)
            raise
        weakref.finalize(self, os.close, lock)
        weakref.finalize(self, os.close, self.fd)
        for leftover in os.listdir(self.path / PARTIAL):
            with suppress(OSError):
                os.unlink(self.path / PARTIAL / leftover)


class Foreign(NamedTuple):
    """A namespace that is not ours."""

    opened: float  # when it was last opened, seconds since the epoch
    nbytes: int
    path: Path


def base_of(path: Path, site: Site) -> Path:
    """Name the directory that this engine's ranks share."""
    return path if site.engine is None else path / f"dp{site.engine}"


def bases(path: Path) -> list[Path]:
    """List the engines' directories at `path`: itself, and those of data-parallel engines below."""
    below = [p for p in path.iterdir() if _ENGINE.fullmatch(p.name) and _is_own_dir(p)]
    return [path, *sorted(below)]


def was_used(base: Path) -> bool:
    """Whether an engine ever had its ranks' places below `base`, or left records there."""
    return any(base.glob("r[0-9]*.lock")) or any(namespaces(base))


def device_of(path: Path) -> int:
    """Return the number of the device that a path is on, or would be if it were made."""
    for folder in (path, *path.parents):
        with suppress(FileNotFoundError):
            return os.stat(folder).st_dev
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def lock_rank(base: Path, site: Site, timeout_s: float) -> int:
    """Lock one rank's place below `base` and return the descriptor that holds the lock.

    Retried: after a kill -9 the process before may outlive its engine for a moment.

    Raises:
        ConfigError: somebody else still holds it.
    """
    holder = ""
    for _ in range(max(1, round(timeout_s / _RETRY_S))):
        fd = os.open(_lock_of(base, site), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if _try_lock(fd) and has_lock(fd, base, site):
                with suppress(OSError):  # for people only, and the disk may be full
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(_RETRY_S)
    raise ConfigError(
        f"tier {site.name!r}: {base} is in use by another engine (rank {site.rank}, pid {holder or 'unknown'}); "
        "stop it, or give this engine a path of its own"
    )


def has_lock(fd: int, base: Path, site: Site) -> bool:
    """Whether `fd` is what others would have to lock for this rank's place: nobody has removed the file since."""
    return _is_at(fd, _lock_of(base, site))


def locked_ranks(base: Path) -> list[str]:
    """List who holds a rank of this directory, as `r0 (pid 17)`."""
    holders = []
    for lock in _locks(base):
        fd = os.open(lock, _LOCKED)
        try:
            if not _try_lock(fd):
                holders.append(
                    f"{lock.stem} (pid {os.pread(fd, 32, 0).decode(errors='replace').strip()})"
                )
        finally:
            os.close(fd)
    return holders


@contextmanager
def no_engine(bases: Iterable[Path]) -> Iterator[None]:
    """Keep every engine out of these directories; an engine that uses one already is a ConfigError."""
    with ExitStack() as held:
        for base in bases:
            for lock in _locks(base):
                fd = os.open(lock, _LOCKED)
                held.callback(os.close, fd)
                if not _try_lock(fd):
                    holders = ", ".join(locked_ranks(base))
                    raise ConfigError(f"{base} is in use by {holders}; stop that engine first")
        yield


def namespaces(base: Path) -> Iterator[Path]:
    """List the namespace directories below `base`; nothing else there is ever touched."""
    for entry in base.iterdir():
        with suppress(OSError):
            if _is_namespace(entry) and not _is_newer(entry):
                yield entry


def foreign(base: Path, own: str) -> list[Foreign]:
    """Weigh every namespace but `own`, oldest first."""
    found = []
    for path in namespaces(base):
        if path.name != own:
            with suppress(OSError):
                found.append(Foreign(_opened(path), weigh(path), path))
    return sorted(found)


def left(path: Path, site: Site, own: str) -> list[Foreign]:
    """Weigh the namespaces at `path` that were left when the number of engines changed.

    A directory counts if no engine uses it now and this process may read it. One of several engines may
    start later than this one. So a namespace with the name `own` is not listed: it could belong to that engine.
    """
    found: list[Foreign] = []
    for base in bases(path):
        if base != base_of(path, site):
            with suppress(OSError):
                if not locked_ranks(base):
                    found += foreign(base, "" if site.engine is None else own)
    return found


def discard(namespace: Path) -> bool:
    """Remove a namespace unless somebody uses it, and return whether it is gone."""
    try:
        trash = retire(namespace)
    except FileNotFoundError:
        return True
    if trash is not None:
        remove_tree(trash)
    return trash is not None


def retire(namespace: Path) -> Path | None:
    """Make a namespace trash; None where somebody uses it.

    Raises:
        FileNotFoundError: it is gone already.
    """
    fd = os.open(namespace, _FOLDER)
    try:
        return to_trash(namespace) if _try_lock(fd) and _is_at(fd, namespace) else None
    finally:
        os.close(fd)


def ended(base: Path, own: str) -> Iterator[Path]:
    """List the namespaces that differ from `own` in nothing but the epoch: no engine opens them again.

    There are none where `own` is of an epoch of its own because nobody could read which it should be.
    """
    mine = _but_epoch(base / own)
    if mine and not mine[1].startswith("unread"):
        for path in namespaces(base):
            theirs = _but_epoch(path)
            if path.name != own and theirs and theirs[0] == mine[0]:
                yield path


def _but_epoch(namespace: Path) -> tuple[dict[str, object], str] | None:
    """Read a manifest, and the epoch in it apart; None where it has none."""
    with suppress(OSError):
        said = _said_in(namespace)
        if isinstance(said, dict) and "epoch" in said:
            return said, str(said.pop("epoch"))
    return None


def to_trash(path: Path, rank: int | None = None) -> Path:
    """Rename a namespace, or one rank's part of it, so that nobody finds it again."""
    base = path.parent if rank is None else path.parent.parent
    if rank is not None and path.parent.is_symlink():  # what a rank has there is another's
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
    trash = base / f".trash-r{rank}-{os.getpid()}-{time.monotonic_ns()}"
    os.rename(path, trash)
    return trash


def sync(*directories: Path) -> None:
    """Make what was renamed in these directories survive a power cut."""
    for directory in directories:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def trash_in(base: Path) -> list[Path]:
    """List what a reset or a reclaim left to be removed."""
    return sorted(p for p in base.iterdir() if _TRASH.fullmatch(p.name) and _is_own_dir(p))


def remove_tree(path: Path) -> None:
    """Remove as much of a directory as can be removed; what took its name meanwhile stays.

    It is looked at once more because `shutil.rmtree` opens whatever it is given, and to open a FIFO can take for ever.
    """
    if _is_own_dir(path):
        shutil.rmtree(path, ignore_errors=True)


def drop_if_empty(namespace: Path) -> None:
    """Remove a namespace directory that holds no rank's records any more and that nobody uses."""
    if _is_namespace(namespace) and not any(namespace.glob("r*")):
        discard(namespace)


def _is_namespace(path: Path) -> bool:
    """Whether this is a namespace, with nothing in it that one does not have."""
    if _NAMESPACE.fullmatch(path.name) and _is_own_dir(path):
        with suppress(OSError):
            names = os.listdir(path)
            return MANIFEST in names and all(map(_IN_NAMESPACE.fullmatch, names))
    return False


def _is_own_dir(path: Path) -> bool:
    """Whether this is a directory itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _lock_of(base: Path, site: Site) -> Path:
    return base / f"r{site.rank}.lock"


def _is_newer(namespace: Path) -> bool:
    """Whether its manifest says that a later kvtier wrote what is there; a damaged one does not."""
    said = _said_in(namespace)
    found = said.get("format") if isinstance(said, dict) else None
    return isinstance(found, int) and found > FORMAT


def _said_in(namespace: Path) -> object:
    """Read a manifest, never more than one can have; None where it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hold anybody up
    with os.fdopen(os.open(namespace / MANIFEST, flags), "rb") as file:
        try:
            return json.loads(file.read(_MANIFEST_NBYTES) or b"")
        except (ValueError, RecursionError):
            return None


def _locks(base: Path) -> list[Path]:
    return sorted(p for p in base.glob("r*.lock") if p.is_file() and not p.is_symlink())


def _share(namespace: Path) -> int:
    """Make and lock a namespace directory; again if it was removed in between."""
    while True:
        namespace.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(namespace, _FOLDER)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if _is_at(fd, namespace):
                return fd
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _describe(namespace: Path, manifest: str) -> None:
    """Write the manifest; where it is there already nothing is written, so that a full disk can be read."""
    path = namespace / MANIFEST
    with suppress(OSError, ValueError):
        found = path.lstat()
        small = stat.S_ISREG(found.st_mode) and found.st_size <= _MANIFEST_NBYTES
        if small and path.read_text() == manifest:
            with suppress(OSError):
                os.utime(path)
            return
    with replacement(path) as partial, os.fdopen(create(partial), "w") as file:
        file.write(manifest)


def _opened(namespace: Path) -> float:
    try:
        return (namespace / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return namespace.stat().st_mtime


def weigh(directory: str | os.PathLike[str]) -> int:
    """Sum the bytes below a directory; what goes meanwhile may or may not be in it.

    What cannot be listed is not: the rest must count all the same.
    """
    total = 0
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += weigh(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total
