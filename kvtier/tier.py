"""The tier interface: where records live below the arena. Runs in the I/O process."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Entry(NamedTuple):
    """A record as a scan sees it: nothing of it was read."""

    key: bytes
    nbytes: int  # as the tier accounts it: whole record, header and padding included
    mtime: float  # seconds since the Unix epoch


class Site(NamedTuple):
    """Which rank of which engine a tier serves; what its constructor is given beside its own config."""

    name: str  # of the tier, for logs and errors
    rank: int = 0
    local_ranks: int = 1  # of this engine on this node: they share what is per engine and node
    engine: int | None = None  # which of several data-parallel engines; None: the only one
    capacity: int = 0  # bytes of this rank's share
    nodes: tuple[int, ...] = ()  # NUMA nodes that the configuration names
    spare_nbytes: int | None = None  # memory that it may count on; None: what is free now
    engines: int = 1  # data-parallel ones on this node, each with ranks and capacities of its own


class Tier(ABC):
    """A store of records by key for one rank and one namespace.

    Constructed as `cls(config, site)` where the class has a `Config` (a msgspec struct), else as
    `cls(site)`: takes whatever lock it needs, or raises ConfigError. Then opened, then used.
    Calls block and may come from several threads at once. Buffers are 4 KiB aligned, their lengths
    multiples of 4 KiB; a record is written from, and read into, several buffers one after the other.
    Write is atomic: a reader, or a restart, sees the whole record or none.
    Eviction and capacity are the brain's: a tier only stores.
    """

    persistent: ClassVar[bool] = True
    """Whether records outlive the engine: then they are written behind by default, not on eviction."""

    notes_in: ClassVar[str] = ""
    """The option of its `Config` that names a local directory of its own: there the engine notes its resets.

    Where there is none, a reset outlives an engine only as far as this process has carried it out.
    """

    reader: ClassVar[str] = ""
    """The class, as `package.module:Class`, that reads its records in another process of the node, as if it were that rank.

    Where all ranks of a node have the same KV, one keeps the records and the others read them so; empty: each keeps its own.
    """

    takes_numa: ClassVar[bool] = False
    """Whether its records are in memory that it binds to `Site.nodes`; else `numa` is refused for it."""

    def open(self, namespace: str, manifest: str) -> None:  # noqa: B027 - optional: nothing may outlive it
        """Go on under `namespace`, with what it holds from before; `manifest` says for people what that is.

        Raises:
            TierError: the medium failed; may be called again.
        """

    def reclaim(self, nbytes: int) -> int:
        """Remove foreign namespaces nobody uses, oldest first, until `nbytes` are free; return the bytes left.

        What is being removed counts until it is gone. The answer is this rank's share. `reclaim(0)` only counts.
        """
        return 0

    def free(self, nbytes: int) -> int | None:
        """Return how many bytes of records of `nbytes` each the medium still takes; None: nobody can say.

        The answer is this rank's share. It may be asked before `open`.

        Raises:
            TierError: the medium failed.
        """
        return None

    def located(self) -> list[tuple[int, int]]:
        """Return NUMA nodes and the bytes on each that its records' memory has now, for metrics; cheap."""
        return []

    @property
    def memory_nbytes(self) -> int:
        """Bytes of this machine's ordinary memory that it has, or will take."""
        return 0

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
            TierError: it is not stored, and nothing of it is left behind. Where room is all that lacks, the cause is
                an OSError of ENOSPC or EDQUOT: the engine then takes less for the tier's capacity.
        """

    @abstractmethod
    def remove(self, key: bytes) -> bool:
        """Drop the record and return whether there was one."""

    @abstractmethod
    def scan(self) -> Iterator[Entry]:
        """List the records in any order without reading them; what changes meanwhile may or may not show."""

    @abstractmethod
    def reset(self, namespace: str, manifest: str) -> None:
        """Forget every record and go on under `namespace`: none is ever readable again, nor after a restart.

        Raises:
            TierError: not done, or not wholly; must be called again before anything else is.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent."""


class AskedTier(Tier):
    """A store that other engines use at the same time: it is asked what it has, and never listed, weighed or emptied.

    Engines of one namespace and rank have the same records, which are all equally right. Every call ends within the time
    that its configuration gives it, whatever the store does. Its constructor looks at its configuration only: a store that is
    not there is a TierError of `open`.
    """

    @classmethod
    def refuse(cls, options: Mapping[str, object], where: str, *, here: bool) -> None:
        """Raise a ConfigError, which says `where`, for options that cannot work; nobody is asked, least of all the store.

        What is not to run `here` is not held against this machine.
        """

    @abstractmethod
    def leading(self, keys: Sequence[bytes]) -> int:
        """Return how many of `keys` have a record, one after the other from the first. A hint: a read may find less.

        Raises:
            TierError: the store does not say.
        """

    @abstractmethod
    def has(self, key: bytes) -> bool:
        """Return whether there is a record, as a hint.

        Raises:
            TierError: the store does not say.
        """

    @abstractmethod
    def discard(self, key: bytes, head: bytes) -> bool:
        """Drop the record if it begins with `head`, and return whether it did: another one may have taken its place.

        Raises:
            TierError: the store failed.
        """

    def scan(self) -> Iterator[Entry]:
        """List nothing: there may be more than anybody can list."""
        return iter(())

    def reset(self, namespace: str, manifest: str) -> None:
        """Go on under `namespace`; what others have stays."""
        self.open(namespace, manifest)
