"""Files that a command writes for its user: refused before the work, written whole or not at all."""

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from kvtier.errors import ConfigError, one_line
from kvtier.replacement import replacement

JSON = "--json"
STDOUT = Path("-")
JsonFile = Annotated[
    Path | None,
    typer.Option(
        JSON,
        metavar="[FILE]",
        help="Write the result as JSON to FILE; to standard output, in place of words, without FILE or with -.",
        show_default=False,
    ),
]

_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS}
"""What forbids to replace a file that may still be written to."""


def check_writable(*files: Path | None) -> None:
    """Raise a ConfigError for a file that cannot be written: now, not after minutes of work."""
    for file in filter(None, files):
        if file == STDOUT:
            continue
        # Of a link to nothing it is its target's directory that counts.
        written = file if file.exists() else file.resolve().parent
        if file.is_dir() or not os.access(written, os.W_OK):
            raise ConfigError(f"{file}: cannot be written")


def plain(text: object) -> str:
    """Make what somebody else named fit for a terminal: no control characters, no markup."""
    return escape(one_line(str(text)))


def with_file(words: Sequence[str]) -> list[str]:
    """Put the file that a bare --json means, standard output, after it: options with a value must have one."""
    found = []
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        found.append(word)
        if word == JSON and after.startswith("-") and after != str(STDOUT):
            found.append(str(STDOUT))
    return found


def console_beside(json_file: Path | None, *, soft_wrap: bool = False) -> Console:
    """Make the console for a command's words: silent where standard output is for JSON."""
    return Console(highlight=False, quiet=json_file == STDOUT, soft_wrap=soft_wrap)


def save_json(file: Path | None, *values: object) -> None:
    """Write values as JSON, one on a line; nowhere without a file.

    Raises:
        OSError: the file cannot be written.
    """
    text = "".join(msgspec.json.encode(value).decode() + "\n" for value in values)
    if file == STDOUT:
        sys.stdout.write(text)
    elif file:
        save(file, text)


def save(file: Path, text: str) -> None:
    """Put `text` in the place of a file. What cannot be replaced is written to: /dev/stdout, a link, a file of somebody
    else's, a mount point.

    Raises:
        OSError: it cannot be written; what was there still is, where it could be replaced.
    """
    if _is_plain(file):
        try:
            with replacement(file) as partial:
                partial.write_text(text, encoding="utf-8")
                if file.exists():
                    shutil.copymode(file, partial)
        except OSError as exc:
            if exc.errno not in _IN_PLACE:
                raise
        else:
            return
    file.write_text(text, encoding="utf-8")


def _is_plain(file: Path) -> bool:
    """Whether a file of our own is there, or nothing."""
    if not file.exists():
        return not file.is_symlink()
    return file.is_file() and not file.is_symlink() and file.stat().st_uid == os.geteuid()
