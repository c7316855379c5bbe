"""The codec interface: raw bytes of one chunk <-> bytes that a record holds."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Codec(ABC):
    """Encode and decode whole chunks.

    `id` is written into every record: once released it is a promise for ever and never reused.
    Called from several threads of the I/O process at once; implementations keep per-thread contexts.
    """

    id: ClassVar[int]
    name: ClassVar[str]

    @abstractmethod
    def encode(self, chunk: Bytes, out: Bytes) -> int | None:
        """Encode `chunk` into `out` and return the bytes used, or None if it does not fit or does not shrink.

        `out` is at least as long as `chunk`. None means: store it raw.
        """

    @abstractmethod
    def decode(self, buf: Bytes, out: Bytes) -> None:
        """Decode `buf` so that it fills `out` exactly.

        Raises:
            CorruptBlock: `buf` is not an encoding of exactly `len(out)` bytes. Never writes outside `out`.
        """
