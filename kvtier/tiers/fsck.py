"""Verify every record that lies in a file tier's directory, without an engine."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvtier.errors import CorruptBlock, reason
from kvtier.io_process import record
from kvtier.tiers.directory import PARTIAL, SUFFIX, namespaces, trash_in
from kvtier.types import PAGE

_PIECE = 16 << 20  # a record may be a sparse file of a terabyte
_RANK = re.compile(r"r(\d+)")


class Location(NamedTuple):
    """A file where only a record should be."""

    path: Path
    namespace: str
    rank: str


class Verdict(NamedTuple):
    """What a file turned out to be; `fault` is empty where it is a record and well."""

    place: Location
    nbytes: int
    fault: str = ""


def places(base: Path) -> Iterator[Location]:
    """List every file that is at, or in, a place for records; a link to a directory is a file here."""
    for namespace in sorted(namespaces(base)):
        for rank in sorted(p for p in namespace.iterdir() if _RANK.fullmatch(p.name)):
            for shard in _in(rank):
                if shard.name != PARTIAL:
                    yield from (Location(file, namespace.name, rank.name) for file in _in(shard))


def _in(path: Path) -> list[Path]:
    """List what is in a directory, or the path itself where it is none."""
    return sorted(path.iterdir()) if path.is_dir() and not path.is_symlink() else [path]


def leftovers(base: Path) -> list[Path]:
    """List what a crash or a reset left: never read, and removed by the next engine."""
    partial = [p for namespace in namespaces(base) for p in namespace.glob(f"r*/{PARTIAL}/*")]
    return sorted([*partial, *trash_in(base)])


def verify(place: Location) -> Verdict | None:
    """Read one record whole and compare it with itself and with its place; None if it is gone by now."""
    nbytes = 0
    try:
        nbytes = place.path.lstat().st_size
        _verify(place)
    except FileNotFoundError:
        return None
    except CorruptBlock as exc:
        return Verdict(place, nbytes, str(exc))
    except OSError as exc:
        return Verdict(place, nbytes, reason(exc))
    return Verdict(place, nbytes)


def _verify(place: Location) -> None:
    path = place.path
    if path.suffix != SUFFIX:
        raise CorruptBlock("not a record's name")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise CorruptBlock("not a regular file")
        header = record.unpack(np.frombuffer(file.read(PAGE), np.uint8))
        if found.st_size != PAGE + record.padded(header.stored_nbytes):
            raise CorruptBlock(f"the record has {found.st_size} bytes")
        pieces = (np.frombuffer(piece, np.uint8) for piece in iter(lambda: file.read(_PIECE), b""))
        if record.checksum_of(pieces) != header.checksum:
            raise CorruptBlock("payload checksum differs")
    if header.namespace != place.namespace:
        raise CorruptBlock("namespace differs from its directory")
    if f"r{header.rank}" != place.rank:
        raise CorruptBlock("rank differs from its directory")
    if (path.parent.name, path.stem) != (header.key.hex()[:2], header.key.hex()):
        raise CorruptBlock("key differs from its name")
