"""Who may change what a file tier keeps: the engine's user alone. Whoever else could, could change answers."""

import os
import stat
from pathlib import Path

from kvtier.errors import ConfigError
from kvtier.tiers.directory import bases, namespaces


def objection(path: Path) -> str:
    """Say why records at `path` would not be safe, and what to do about it; nothing, where they are or it is not there.

    Looks at the directory, the ones of data-parallel engines, and their namespaces. What lies deeper, only the
    owners of these could have changed.
    """
    if not path.is_dir():
        return ""
    why = _of_directory(path)
    for base in [] if why else bases(path):
        found = (_of_directory(each) for each in (base, *namespaces(base)))
        why = why or next(filter(None, found), "")
    return why


def refuse_shared(path: Path, where: str) -> None:
    """Raise a ConfigError, which says `where`, if others than this process's user may write at `path`.

    Raises:
        OSError: the medium says no.
    """
    if why := objection(path):
        raise ConfigError(f"{where}: {why}")


def _of_directory(path: Path) -> str:
    try:
        found, user = path.stat(), os.geteuid()
    except FileNotFoundError:
        return ""  # another rank or engine has removed it since it was listed
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != user:
        return (
            f"{path} belongs to user {found.st_uid}, and this is user {user}: its owner could change answers; "
            f"run 'chown -R {user} {path}', or name a new directory, {path}/kvtier for example"
        )
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return (
            f"{path} can be written by others (mode {mode:04o}), who could change answers; "
            f"run 'chmod go-w {path}', or name a new directory, {path}/kvtier for example"
        )
    return ""
