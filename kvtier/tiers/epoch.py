"""The note of resets in a tier's directory: which epoch the next engine of a namespace starts in.

    <path>/[dp<i>/].epoch-<namespace>-<epoch>      an empty file; 32 hex digits each, none before the first reset

`namespace` is the one of the first epoch. A reset renames the note: what was written before is then in a namespace
that no engine opens again, whatever becomes of the processes that should remove it. A rename is whole or not at
all, and takes no room on a full disk.
"""

import os
import re
from pathlib import Path

from kvtier.tiers.directory import sync

_NOTE = re.compile(r"\.epoch-([0-9a-f]{32})-([0-9a-f]{32})")


def notes(base: Path) -> list[tuple[str, str]]:
    """List the notes of a directory: a namespace and an epoch in which its next engine starts.

    Raises:
        OSError: it cannot be listed; where there is no directory there is no note.
    """
    try:
        with os.scandir(base) as entries:
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    found = [match for name in files if (match := _NOTE.fullmatch(name))]
    return sorted((match[1], match[2]) for match in found)


def note(base: Path, namespace: str, epoch: str) -> None:
    """Let the next engine of `namespace` start in `epoch`; done when this returns, also after a power cut.

    Raises:
        OSError: it is not noted, or may not survive a power cut.
    """
    fresh = _path(base, namespace, epoch)
    before = [_path(base, of, old) for of, old in notes(base) if of == namespace]
    if before:
        os.rename(before[0], fresh)
    else:
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    for other in before[1:]:
        os.unlink(other)
    sync(base)


def _path(base: Path, namespace: str, epoch: str) -> Path:
    return base / f".epoch-{namespace}-{epoch}"
