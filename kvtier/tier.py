"""The tier interface: where records live below the arena. Runs in the I/O process."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Entry(NamedTuple):
    """A record as a scan sees it: nothing of it was read."""

    key: bytes
    nbytes: int  # as the tier accounts it: whole record, header and padding included
    mtime: float  # seconds since the Unix epoch


class Tier(ABC):
    """A store of records by key for one rank and one namespace.

    Calls block and may come from several threads at once. Buffers are 4 KiB aligned, their lengths
    multiples of 4 KiB; a record is written from, and read into, several buffers one after the other.
    Write is atomic: a reader, or a restart, sees the whole record or none.
    Eviction and capacity are the brain's: a tier only stores.
    """

    @abstractmethod
    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        """Fill `bufs` with the record from its start and return its length in bytes; 0 where there is none.

        A record longer than `bufs` fills them and returns its true length.

        Raises:
            TierError: the medium failed.
        """

    @abstractmethod
    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        """Store `bufs` as the record, replacing any, and return the bytes it occupies.

        Raises:
            TierError: it is not stored, and nothing of it is left behind.
        """

    @abstractmethod
    def remove(self, key: bytes) -> bool:
        """Drop the record and return whether there was one."""

    @abstractmethod
    def scan(self) -> Iterator[Entry]:
        """List the records in any order without reading them; what changes meanwhile may or may not show."""

    @abstractmethod
    def reset(self, namespace: str, manifest: str) -> None:
        """Forget every record and go on under `namespace`: none of them is ever readable again, nor after a restart."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent."""
