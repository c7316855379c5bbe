"""What the brain tells policies: about the tier they decide for, and about requests."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from kvtier.types import BlockKey


class TierFacts(ABC):
    """One tier's side of every decision. Each answer costs O(1), changes nothing and never raises.

    What is not known yet (before the first measurement, before the arena has slots) is answered by a
    usable guess: an equal cost for equal tokens. Bytes are those of one rank.
    """

    @abstractmethod
    def clock(self) -> float:
        """Return the time in seconds, from any start; virtual in a replay."""

    @property
    @abstractmethod
    def capacity(self) -> int | None:
        """Return the bytes that the tier may hold; None before that is known."""

    @abstractmethod
    def nbytes(self, key: BlockKey) -> int:
        """Return the bytes of a chunk in this tier; of one that is not here, its raw size."""

    @abstractmethod
    def seconds(self, key: BlockKey) -> float:
        """Return the seconds of prefill that a hit on a chunk saves; a deeper chunk saves more."""

    @abstractmethod
    def prefill_s(self, start: int, end: int) -> float:
        """Return the seconds that the engine needs to compute the tokens [start, end) of a sequence."""

    @abstractmethod
    def read_s(self, nbytes: int) -> float:
        """Return the seconds that so many bytes of this tier need to the device; 0 while unmeasured."""

    @abstractmethod
    def score(self, key: BlockKey) -> float | None:
        """Return what a scorer thinks a chunk is worth, 0 to 1; None where there is no score."""


class RequestHints(NamedTuple):
    """What a client said about a request; nothing of it can be relied on."""

    session: str | None = None  # requests of one conversation share it
    priority: int = 0  # higher is more worth keeping
    ttl_s: float | None = None  # nobody will ask again after so many seconds
    session_end: bool = False  # the conversation ends with this request


class GroupKeys(NamedTuple):
    """A request's chunks of one KV-cache group."""

    # From chunk 0, in prefix order; grows as decoding goes on. Not to be changed.
    keys: Sequence[BlockKey]
    chunk_tokens: int
    window_chunks: int | None  # of its attention window; None: full attention


class RequestFacts(NamedTuple):
    """One request as policies see it."""

    name: str  # unique while it lives
    groups: tuple[GroupKeys, ...]
    arrived_s: float  # on the facts' clock
    hints: RequestHints

    @property
    def prefix(self) -> GroupKeys:
        """The chunks that stand for the whole prefix: of the first full-attention group, else the first."""
        return next((g for g in self.groups if g.window_chunks is None), self.groups[0])

    @property
    def keys(self) -> Sequence[BlockKey]:
        """The keys of `prefix`."""
        return self.prefix.keys

    @property
    def tokens(self) -> int:
        """Tokens of the prefix in whole chunks."""
        return max(len(group.keys) * group.chunk_tokens for group in self.groups)
