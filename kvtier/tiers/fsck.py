"""Verify every record that lies in a file tier's directory, without an engine."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvtier.errors import CorruptBlock
from kvtier.io_process import record
from kvtier.tiers.directory import PARTIAL, SUFFIX, namespaces, trash_in
from kvtier.types import PAGE

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
    """List every file that is at, or in, a place for records."""
    for namespace in sorted(namespaces(base)):
        for rank in sorted(p for p in namespace.iterdir() if _RANK.fullmatch(p.name)):
            for shard in sorted(rank.iterdir()):
                if shard.name != PARTIAL:
                    files = sorted(shard.iterdir()) if shard.is_dir() else [shard]
                    yield from (Location(file, namespace.name, rank.name) for file in files)


def leftovers(base: Path) -> list[Path]:
    """List what a crash or a reset left: never read, and removed by the next engine."""
    partial = [p for namespace in namespaces(base) for p in namespace.glob(f"r*/{PARTIAL}/*")]
    return sorted([*partial, *trash_in(base)])


def verify(place: Location) -> Verdict | None:
    """Read one record whole and compare it with itself and with its place; None if it is gone by now."""
    nbytes = 0
    try:
        nbytes = place.path.stat().st_size
        _verify(place)
    except FileNotFoundError:
        return None
    except CorruptBlock as exc:
        return Verdict(place, nbytes, str(exc))
    except OSError as exc:
        return Verdict(place, nbytes, exc.strerror or str(exc))
    return Verdict(place, nbytes)


def _verify(place: Location) -> None:
    path = place.path
    if path.suffix != SUFFIX:
        raise CorruptBlock("not a record's name")
    content = np.fromfile(path, np.uint8)
    header = record.unpack(content[:PAGE])
    record.check_payload(header, len(content), content[PAGE:])
    if header.namespace != place.namespace:
        raise CorruptBlock("namespace differs from its directory")
    if f"r{header.rank}" != place.rank:
        raise CorruptBlock("rank differs from its directory")
    if (path.parent.name, path.stem) != (header.key.hex()[:2], header.key.hex()):
        raise CorruptBlock("key differs from its name")
