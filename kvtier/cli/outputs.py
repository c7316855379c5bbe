"""Files that a command writes for its user: refused before the work, written whole or not at all."""

import os
import tempfile
from pathlib import Path

from kvtier.errors import ConfigError


def check_writable(*files: Path | None) -> None:
    """Refuse now what would fail after minutes.

    Raises:
        ConfigError: one of them cannot be written.
    """
    for file in filter(None, files):
        if file.is_dir() or not os.access(
            file if file.exists() else file.absolute().parent, os.W_OK
        ):
            raise ConfigError(f"{file}: cannot be written")


def save(file: Path, text: str) -> None:
    """Put `text` in the place of a file; what is no plain file, /dev/stdout for example, is written to.

    Raises:
        OSError: it cannot be written; what was there still is.
    """
    if file.is_symlink() or (file.exists() and not file.is_file()):
        file.write_text(text)
        return
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~_umask()
    fd, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
    try:
        with open(fd, "w") as partial:
            partial.write(text)
        os.chmod(name, mode)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask
