"""What the weight files of a model hold: hashed once in a file's life, and remembered beside the records.

A file is known by its state (size, times, inode). Two contents never have one state, because nobody sets a file's
ctime. A content has one name for ever: its own, or the private one under which its first records were written.
"""

import fcntl
import hashlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from kvtier.replacement import create, replacement

logger = logging.getLogger(__name__)

LEDGER = "weights.json"
_LOCK = "weights.lock"
_PEEK_S = 5.0
_PEEK_NBYTES = 16 << 20
_KILL_S = 0.1
_MOST_FILES = 4096  # of the newest that are remembered
_MOST_NAMES = 256
_CHUNK = 1 << 20
_BYTES_PER_S = 256 << 20
_BUSY = 16  # while operations wait, so many times slower


class FileState(msgspec.Struct, frozen=True, array_like=True):
    """What changes when a file does. It never names a content, because a copy has another."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "FileState":
        """Take it from a stat."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class WeightFile(msgspec.Struct, frozen=True):
    """One weight file of a model."""

    name: str  # in the model's directory
    path: str  # with every link resolved
    state: FileState
    sha256: str = ""  # of its content; empty: not known yet


class Known(msgspec.Struct, frozen=True):
    """A file that was hashed, or a blob of the hub that was believed, in the state that it had then."""

    state: FileState
    sha256: str


class Ledger(msgspec.Struct):
    """All that is remembered in one tier's directory."""

    files: dict[str, Known] = {}  # by resolved path
    names: dict[str, str] = {}  # what a content is called: itself, or as it was before it was known


class Unread(msgspec.Struct, frozen=True):
    """A model whose files are to be remembered, those that are not known after a read of all of them."""

    folder: str
    files: list[WeightFile]
    settings: str  # digest of what else the content is: see `content_of`
    name: str  # what records are written under meanwhile


def content_of(files: Iterable[WeightFile], settings: str) -> str:
    """Name a model by what its files hold; empty where one is not known."""
    rows = sorted((file.name, file.sha256) for file in files)
    if not all(sha256 for _, sha256 in rows):
        return ""
    digest = hashlib.sha256(msgspec.json.encode([settings, rows]))
    return f"content:{digest.hexdigest()[:32]}"


def read_ledger(folder: Path) -> Ledger:
    """Read what is remembered; nothing, where it cannot be read."""
    try:
        fd = os.open(folder / LEDGER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            return _ledger(file.read())
    except OSError:
        return Ledger()


def peek(folder: Path, timeout_s: float = _PEEK_S) -> Ledger | None:
    """Read what is remembered from outside of an I/O process; None where the disk does not answer in time.

    Another process reads: a thread that hangs in a dead disk would keep the caller's process from ending.
    """
    command = ["head", "-c", str(_PEEK_NBYTES), "--", str(folder / LEDGER)]
    quiet = subprocess.DEVNULL
    reading = subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet)
    try:
        return _ledger(reading.communicate(timeout=timeout_s)[0])
    except subprocess.TimeoutExpired:
        reading.kill()
        with suppress(subprocess.TimeoutExpired):
            reading.communicate(timeout=_KILL_S)  # in a dead disk it does not even end
        return None


def _ledger(content: bytes) -> Ledger:
    try:
        return msgspec.json.decode(content, type=Ledger)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Ledger()


class Reader:
    """Hash the files that are not known, in a thread of its own, and remember what it finds.

    It reads slowly, more slowly while operations wait, and may end with the process at any moment: each whole file
    is remembered at once. One process on a node reads; others with the same directory wait for what it finds.
    """

    def __init__(
        self,
        model: Unread,
        busy: Callable[[], bool],
        *,
        bytes_per_s: float = _BYTES_PER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._model = model
        self._folder = Path(model.folder)
        self._busy = busy
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self.thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            with _alone(self._folder):
                self._read()
        except OSError as exc:
            logger.warning("the weights are not identified by their content: %s", exc)
        except Exception:
            logger.exception("the weights are not identified by their content")

    def _read(self) -> None:
        ledger, model = read_ledger(self._folder), self._model
        started = time.monotonic()
        files: list[WeightFile] = []
        for file in model.files:
            if files:
                _save(self._folder, ledger)  # the last goes with the name: no crash parts them
            sha256 = file.sha256 or _known(ledger, file) or self._hash(file)
            if not sha256:
                logger.warning("%s changed while it was read: not identified", file.path)
                return
            if _known(ledger, file) != sha256:
                ledger.files.pop(file.path, None)
                ledger.files[file.path] = Known(file.state, sha256)
            files.append(msgspec.structs.replace(file, sha256=sha256))
        content = content_of(files, model.settings)
        if content not in ledger.names:  # its own name too, before that of an unread copy is noted
            ledger.names[content] = model.name
            seconds = time.monotonic() - started
            logger.info("the weights are %s, found out in %.0f s", content, seconds)
        _save(self._folder, ledger)

    def _hash(self, file: WeightFile) -> str:
        """Read a whole file; nothing where it is not, or does not stay, the one that the model was loaded from."""
        digest = hashlib.sha256()
        fd = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as stream:
            if FileState.of(os.fstat(fd)) != file.state:
                return ""
            while piece := stream.read(_CHUNK):
                digest.update(piece)
                slower = _BUSY if self._busy() else 1
                self._sleep(len(piece) * slower / self._bytes_per_s)
            if FileState.of(os.fstat(fd)) != file.state:
                return ""
        return digest.hexdigest()


def _known(ledger: Ledger, file: WeightFile) -> str:
    known = ledger.files.get(file.path)
    return known.sha256 if known and known.state == file.state else ""


def _save(folder: Path, ledger: Ledger) -> None:
    if ledger == read_ledger(folder):
        return
    for rows, most in ((ledger.files, _MOST_FILES), (ledger.names, _MOST_NAMES)):
        while len(rows) > most:
            del rows[next(iter(rows))]
    with replacement(folder / LEDGER) as partial, os.fdopen(create(partial), "wb") as file:
        file.write(msgspec.json.encode(ledger))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process reads for this directory."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
