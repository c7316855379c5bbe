"""The codec interface: raw bytes of one chunk <-> bytes that a record holds."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.layout import ChunkLayout

Bytes = npt.NDArray[np.uint8]

MARGIN = 64
"""Bytes that an encoding may be longer than its chunk: room for a stage's own header."""


class Shelf(ABC):
    """Where a codec with dictionaries keeps them: beside the records of a namespace, and as long as those live."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return what was written under `name`, also by an earlier engine.

        Raises:
            TierError: the medium failed.
            CorruptBlock: it is not as it was written.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> bool:
        """Write at most 1 MiB under a name that is free; return False where it is not, or the medium failed."""


class ChunkFacts(NamedTuple):
    """What is known of a chunk beside its bytes; the same at encode and at decode."""

    dtype: str = ""  # bf16, fp16, fp32 or fp8; empty: unknown
    layout: ChunkLayout | None = None  # which byte is which layer, token, head, channel
    unknown: str = ""  # why there is no layout
    end_token: int = 0  # where the chunk ends in its sequence
    shelf: Shelf | None = None  # of the namespace that its record is in


NO_FACTS = ChunkFacts()


class Codec(ABC):
    """Encode and decode whole chunks; alone, or as one stage of several.

    Constructed as `cls(config)` where the class has a `Config`, else as `cls()`.
    `id` is written into every record: once released it is a promise for ever and never reused.
    A payload says of itself whatever its decoder needs: any instance decodes what any other, of any
    configuration, encoded. Called from several threads of the I/O process at once; implementations
    keep per-thread contexts, and release the GIL in whatever is proportional to the chunk.
    """

    id: ClassVar[int]
    name: ClassVar[str]
    lossy: bool = False
    """Whether what comes out may differ from what went in; an instance may know better than its class."""
    needs_layout: bool = False
    """Whether `facts.layout` must be known. As a stage it must then be the first."""
    shrinks: bool = True
    """False for a stage that only rearranges: what it returns is worth it to the next stage alone."""

    def objection(self, facts: ChunkFacts) -> str:
        """Say why chunks of which this is known cannot be encoded; empty: they can. Asked once, at start."""
        if self.needs_layout and facts.layout is None:
            return (
                f"which bytes are which head and token is not known: {facts.unknown}; use lossless"
            )
        return ""

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.name

    @abstractmethod
    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        """Encode `chunk` into `out` and return the bytes used, or None if it does not fit or does not shrink.

        `out` is at least as long as `chunk`, as a rule by `MARGIN` longer, and apart from it. None means: store
        it raw. Depends on nothing but the arguments and the configuration.
        `facts` are of the chunk as the engine made it, also where an earlier stage has changed its bytes.
        """

    @abstractmethod
    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        """Decode `buf` so that it fills `out` exactly.

        Raises:
            CorruptBlock: `buf` is not an encoding of exactly `len(out)` bytes. Never writes outside `out`,
                never allocates more than a few times `len(out)`.
        """


class CodecChoice(Codec):
    """A codec that leaves every chunk to one of several; the header of a record has the id of that one."""

    among: Sequence[Codec]

    @abstractmethod
    def encode_by_one(
        self, chunk: Bytes, out: Bytes, facts: ChunkFacts, waiting: int
    ) -> tuple[Codec, int | None]:
        """Encode with the best codec for now, while `waiting` reads wait for a thread, and say which it was."""
