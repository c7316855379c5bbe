"""Files that a command writes for its user: refused before the work, written whole or not at all."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from kvtier.errors import ConfigError

_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS}
"""What forbids to replace a file that may still be written to."""


def check_writable(*files: Path | None) -> None:
    """Refuse now what would fail after minutes.

    Raises:
        ConfigError: one of them cannot be written.
    """
    for file in filter(None, files):
        # Of a link to nothing it is its target's directory that counts.
        written = file if file.exists() else file.resolve().parent
        if file.is_dir() or not os.access(written, os.W_OK):
            raise ConfigError(f"{file}: cannot be written")


def save(file: Path, text: str) -> None:
    """Put `text` in the place of a file. What cannot be replaced is written to: /dev/stdout, a link, a file of somebody
    else's, a mount point.

    Raises:
        OSError: it cannot be written; what was there still is, where it could be replaced.
    """
    plain = not file.is_symlink() and (file.is_file() or not file.exists())
    there = file.stat() if file.exists() else None
    if plain and (there is None or there.st_uid == os.geteuid()):
        try:
            _replace(file, text, there.st_mode & 0o777 if there else 0o666 & ~_umask())
        except OSError as exc:
            if exc.errno not in _IN_PLACE or there is None:
                raise
        else:
            return
    file.write_text(text, encoding="utf-8")


def _replace(file: Path, text: str, mode: int) -> None:
    fd, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
    try:
        with open(fd, "w", encoding="utf-8") as partial:
            partial.write(text)
        os.chmod(name, mode)
        os.replace(name, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask
