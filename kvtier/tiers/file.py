"""The file tier: one file per record, read and written past the page cache where the disk allows it.

A file appears under its name only when it is whole (`os.replace`). No fsync: a record that a power
cut mangles fails its checksum, and a cache may forget.
"""

import errno
import itertools
import logging
import mmap
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from kvtier.errors import FULL, ConfigError, TierError, reason
from kvtier.tier import Bytes, Entry, Site, Tier
from kvtier.tiers import directory, ownership
from kvtier.tiers.directory import PARTIAL, SUFFIX, Root
from kvtier.tiers.mount import refuse_network
from kvtier.types import PAGE

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 10.0
_FOR_GOOD = (
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
)  # what no retry cures: the path is wrong, or not for this user
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not take a thread for ever


class FileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the records go; the directory is made, its parent must be there."""

    path: str
    exclusive: bool = False  # no other engine has it, though the file system is a network's


class FileTier(Tier):
    """Store records as files. Any thread; operations share nothing but the open directory.

    Where the medium is ill when this is made (full, read-only, stale), `open` tries again; only a path that
    cannot be used, or that another engine uses, is a ConfigError.
    """

    Config = FileConfig
    persistent = True
    notes_in = "path"
    reader = "kvtier.tiers.reader:FileReader"

    def __init__(
        self, config: FileConfig, site: Site, *, lock_timeout_s: float = _LOCK_TIMEOUT_S
    ) -> None:
        self._site = site
        self._path = Path(config.path)
        self._exclusive = config.exclusive
        self._base = directory.base_of(self._path, site)
        self._serial = itertools.count()
        self._root: Root | None = None
        self._tried: Path | None = None  # what was opened last, well or badly
        self._sweeping: set[Path] = set()  # trash that is being removed
        self._lock = -1
        self._mounted = False  # it began on a file system of its own, not on the root's
        self._direct: int | None = None  # the flag of O_DIRECT or 0; None: not known yet
        try:
            self._settle(lock_timeout_s)
        except OSError as exc:
            if exc.errno in _FOR_GOOD:
                self.close()
                raise ConfigError(f"tier {site.name!r}: {config.path}: {exc.strerror}") from exc
            said = "tier %r is closed, and is tried again: %s: %s"
            logger.warning(said, site.name, config.path, exc.strerror)

    def open(self, namespace: str, manifest: str) -> None:
        self._root = None
        self._tried = self._base / namespace / f"r{self._site.rank}"
        with self._medium("open"):
            self._settle()
            try:
                self._root = Root(self._base / namespace, self._site.rank, manifest)
            except OSError as exc:
                if exc.errno not in FULL or not self._make_way(namespace):
                    raise
                self._root = Root(self._base / namespace, self._site.rank, manifest)
            for old in directory.ended(self._base, namespace):
                with suppress(OSError):  # a full disk may refuse it: it counts
                    if trash := directory.retire(old):
                        self._sweep([trash])

    def reclaim(self, nbytes: int) -> int:
        own = self._opened("reclaim").path.parent.name
        left = freed = 0
        with self._medium("reclaim"):
            found = directory.foreign(self._base, own)
            found += directory.left(self._path, self._site, own)
            for namespace in sorted(found):
                if freed < nbytes and _discard(namespace.path):
                    logger.info("removed foreign namespace %s", namespace.path)
                    freed += namespace.nbytes
                else:
                    left += namespace.nbytes
            # After the namespaces: what becomes trash meanwhile is counted twice rather than not at all.
            trash = directory.trash_in(self._base)
            self._sweep(trash)
            left += sum(map(directory.weigh, trash))
        return -(-left // self._site.local_ranks)

    def free(self, nbytes: int) -> int | None:
        with self._medium("free"):
            if self._direct is None and self._lock >= 0:  # the medium was full when it was opened
                self._direct = self._find_direct()
            found = os.statvfs(self._base)
        free = found.f_bavail * found.f_frsize
        if found.f_files:  # 0 where inodes are made as they are needed
            free = min(free, found.f_favail * nbytes)
        return free // (self._site.local_ranks * self._site.engines)

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        root = self._opened("read")
        with self._medium("read"):
            try:
                fd = os.open(name_of(key), READ | (self._direct or 0), dir_fd=root.fd)
            except FileNotFoundError:
                return 0
            except OSError:
                if _is_odd(root.fd, name_of(key)):
                    return 0
                raise
            try:
                return read_into(fd, bufs)
            finally:
                os.close(fd)

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        root = self._opened("write")
        partial = f"{PARTIAL}/{key.hex()}.{next(self._serial)}.partial"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (self._direct or 0)
        try:
            fd = os.open(partial, flags, 0o600, dir_fd=root.fd)
            try:
                nbytes = _write(fd, bufs)
            finally:
                os.close(fd)
            _publish(root.fd, partial, name_of(key))
        except OSError as exc:
            with suppress(OSError):
                os.unlink(partial, dir_fd=root.fd)
            raise TierError(self._site.name, "write", str(exc)) from exc
        return nbytes

    def remove(self, key: bytes) -> bool:
        root = self._opened("remove")
        with self._medium("remove"), suppress(FileNotFoundError):
            os.unlink(name_of(key), dir_fd=root.fd)
            return True
        return False

    def scan(self) -> Iterator[Entry]:
        root = self._opened("scan")
        with self._medium("scan"):
            yield from list_records(root.fd)

    def reset(self, namespace: str, manifest: str) -> None:
        with self._medium("reset"):
            self._settle()  # what is there now may be another engine's
        if self._tried is not None:  # also where it could not be opened
            self._abandon(self._tried)
        # An earlier engine may have come this far too, with other weights.
        self._abandon(self._base / namespace / f"r{self._site.rank}")
        self.open(namespace, manifest)

    def close(self) -> None:
        self._root = None
        self._unlock()

    def _settle(self, lock_timeout_s: float = 0.0) -> None:
        """Make the directory, lock it and find out how it is read; again where somebody has removed it.

        Raises:
            ConfigError: another engine uses it, or others may write there.
            OSError: the medium says no.
        """
        on_root = directory.device_of(self._base) == directory.device_of(Path("/"))
        if self._mounted and on_root:
            raise OSError(errno.ENODEV, "its file system is not mounted any more")
        self._mounted = not on_root
        where = f"tier {self._site.name!r}"
        refuse_network(self._path, where, exclusive=self._exclusive)
        ownership.refuse_shared(self._path, where)
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._base.mkdir(mode=0o700, exist_ok=True)
        if self._lock < 0 or not directory.has_lock(self._lock, self._base, self._site):
            lock = directory.lock_rank(self._base, self._site, lock_timeout_s)
            self._unlock()
            self._lock = lock
            self._direct = None
            bases = directory.bases(self._path)
            self._sweep([trash for base in bases for trash in directory.trash_in(base)])
        if self._direct is None:
            self._direct = self._find_direct()

    def _find_direct(self) -> int | None:
        try:
            refused = refuses_direct(self._base)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            return None  # what is there can be read all the same; the next `open` tries again
        if refused:
            said = "tier %r: %s takes no O_DIRECT (%s); using the page cache"
            logger.warning(said, self._site.name, self._base, refused)
        return 0 if refused else os.O_DIRECT

    def _make_way(self, own: str) -> bool:
        """Remove the oldest namespace that nobody uses: a new one has no room on a full medium."""
        if self._site.rank % self._site.local_ranks:
            return False  # one of the ranks does it
        return any(directory.discard(each.path) for each in directory.foreign(self._base, own))

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _opened(self, operation: str) -> Root:
        root = self._root
        if root is None:
            raise TierError(self._site.name, operation, "no namespace is open")
        return root

    @contextmanager
    def _medium(self, operation: str) -> Iterator[None]:
        """Say of a failure of the medium which tier and operation it met."""
        try:
            yield
        except (OSError, ConfigError) as exc:
            raise TierError(self._site.name, operation, str(exc)) from exc

    def _abandon(self, path: Path) -> None:
        with self._medium("reset"), suppress(FileNotFoundError):
            trash = directory.to_trash(path, self._site.rank)
            directory.sync(path.parent, self._base)  # it must not come back after a power cut
            self._sweep([trash])
        self._root = None
        with suppress(OSError):
            directory.drop_if_empty(path.parent)

    def _sweep(self, trash: list[Path]) -> None:
        """Remove in the background what is not being removed; what a crash leaves is found at the next start."""
        if fresh := [path for path in trash if path not in self._sweeping]:
            self._sweeping.update(fresh)
            args = (fresh, self._sweeping)
            threading.Thread(target=_remove_trees, args=args, name="sweep", daemon=True).start()


def _discard(namespace: Path) -> bool:
    """Remove a foreign namespace; one that the medium does not let go must not protect the others."""
    try:
        return directory.discard(namespace)
    except OSError as exc:
        logger.warning("foreign namespace %s stays: %s", namespace, exc)
        return False


def name_of(key: bytes) -> str:
    """Name a record's file below its rank's directory."""
    name = key.hex()
    return f"{name[:2]}/{name}{SUFFIX}"


def _is_odd(root: int, name: str) -> bool:
    """Whether what has this name is neither a file nor a directory: a link, a FIFO, a device."""
    with suppress(OSError):
        mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _remove_trees(paths: list[Path], sweeping: set[Path]) -> None:
    for path in paths:
        directory.remove_tree(path)
        sweeping.discard(path)


def read_into(fd: int, bufs: Sequence[Bytes]) -> int:
    """Fill `bufs` from a file, and return its length; 0 where it is none."""
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        return 0
    nbytes = found.st_size
    wanted = min(nbytes, sum(map(len, bufs)))
    done = 0
    while done < wanted and (n := os.preadv(fd, _after(bufs, done), done)):
        done += n
    return nbytes if done == wanted else done


def _write(fd: int, bufs: Sequence[Bytes]) -> int:
    nbytes = sum(map(len, bufs))
    done = 0
    while done < nbytes:
        n = os.pwritev(fd, _after(bufs, done), done)
        if not n:
            raise OSError(errno.EIO, "nothing was written")
        done += n
    return nbytes


def _after(bufs: Sequence[Bytes], skip: int) -> list[Bytes]:
    """Name what of `bufs` is left after its first `skip` bytes."""
    left = []
    for buf in bufs:
        if skip < len(buf):
            left.append(buf[skip:])
        skip = max(0, skip - len(buf))
    return left


def _publish(root: int, partial: str, name: str) -> None:
    try:
        os.replace(partial, name, src_dir_fd=root, dst_dir_fd=root)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(name), 0o700, dir_fd=root)
        os.replace(partial, name, src_dir_fd=root, dst_dir_fd=root)


def list_records(root: int) -> Iterator[Entry]:
    """List every record; what of it cannot be listed is raised at the end, when the rest is known."""
    failed: OSError | None = None
    for prefix in os.listdir(root):
        if len(prefix) == 2:
            try:
                yield from _scan_prefix(root, prefix)
            except FileNotFoundError:
                continue
            except OSError as exc:
                failed = failed or exc
    if failed is not None:
        raise failed


def _scan_prefix(root: int, prefix: str) -> Iterator[Entry]:
    fd = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        with os.scandir(fd) as files:
            for file in files:
                stem, dot, suffix = file.name.rpartition(".")
                if dot + suffix == SUFFIX and (entry := _entry(stem, file)):
                    yield entry
    finally:
        os.close(fd)


def _entry(stem: str, file: os.DirEntry[str]) -> Entry | None:
    try:
        found = file.stat(follow_symlinks=False)
        key = bytes.fromhex(stem)
        return Entry(key, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None
    except (FileNotFoundError, ValueError):
        return None


def refuses_direct(folder: Path) -> str:
    """Write and read a page with O_DIRECT; return why that failed, or nothing.

    Raises:
        OSError: not even a file can be written there, or there is no room for one.
    """
    page = mmap.mmap(-1, PAGE)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".kvtier-probe-") as file:
        os.pwritev(file.fileno(), [page], 0)
        try:
            fd = os.open(file.name, os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW)
            try:
                os.pwritev(fd, [page], 0)
                os.preadv(fd, [page], 0)
            finally:
                os.close(fd)
        except OSError as exc:
            if exc.errno in FULL:
                raise
            return reason(exc)
    return ""
