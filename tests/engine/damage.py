"""Records edited behind the engine's back; and the check that every record on a disk is whole."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvtier.io_process import record
from kvtier.io_process.record import Header
from kvtier.tier import Bytes
from kvtier.types import PAGE


def load(path: Path) -> tuple[Header, Bytes]:
    """Read and verify one record: its header, its payload with padding.

    Raises:
        CorruptBlock: it is not whole.
    """
    data = np.fromfile(path, np.uint8)
    header, payload = record.unpack(data[:PAGE]), data[PAGE:]
    record.check_payload(header, len(data), payload)
    return header, payload


def save(path: Path, header: Header, payload: Bytes) -> None:
    """Write a record in place, its checksums right."""
    page = np.zeros(PAGE, np.uint8)
    record.pack(header._replace(checksum=record.checksum(payload)), page)
    np.concatenate([page, payload]).tofile(path)


def in_order(records: Iterable[Path]) -> list[Path]:
    """Sort the records of one prompt by their place in it."""
    return sorted(records, key=lambda path: load(path)[0].end_token)


def flip(path: Path, at: int) -> None:
    """Turn one bit over."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def forge(path: Path) -> None:
    """Reverse the order of the payload's floats under right checksums: the one lie that nothing can find out.

    Bytes in another order would make NaNs, which vLLM's attention spreads to later owners of a block: 0 times NaN.
    """
    header, payload = load(path)
    save(path, header, payload.view(np.float32)[::-1].copy().view(np.uint8))


def _foreign(path: Path, **fields: object) -> None:
    header, payload = load(path)
    save(path, header._replace(**fields), payload)  # type: ignore[arg-type] # any field


def _swap(path: Path, other: Path) -> None:
    aside = path.with_suffix(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def _extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(PAGE))


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink()


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to the records of a prompt, in its order, and how it shows."""

    do: Callable[[list[Path]], None]
    cause: str = "corrupt"
    count: int = 1
    left: int = 3  # chunks before the first that is damaged


DAMAGES = {
    "a bit of the header": Damage(do=lambda r: flip(r[3], 100)),
    "a bit of the header's end": Damage(do=lambda r: flip(r[3], PAGE - 1)),
    "a bit of the payload": Damage(do=lambda r: flip(r[3], PAGE + 123_457)),
    "the last bit": Damage(do=lambda r: flip(r[3], r[3].stat().st_size - 1)),
    "cut in the middle": Damage(do=lambda r: os.truncate(r[3], 65 * PAGE)),
    "cut after the header": Damage(do=lambda r: os.truncate(r[3], PAGE)),
    "cut in the header": Damage(do=lambda r: os.truncate(r[3], 100)),
    "empty": Damage(do=lambda r: os.truncate(r[3], 0), cause="missing"),
    "longer": Damage(do=lambda r: _extend(r[3])),
    "zeros": Damage(do=lambda r: _zero(r[3])),
    "two swapped": Damage(do=lambda r: _swap(r[3], r[5]), count=2),
    "of another namespace": Damage(do=lambda r: _foreign(r[3], namespace="ab" * 16)),
    "of another rank": Damage(do=lambda r: _foreign(r[3], rank=1)),
    "of another group": Damage(do=lambda r: _foreign(r[3], group=1)),
    "an unknown codec": Damage(do=lambda r: _foreign(r[3], codec=999)),
    "deleted": Damage(do=lambda r: r[3].unlink(), cause="missing"),
    "all deleted": Damage(do=_delete, cause="missing", count=8, left=0),
}
