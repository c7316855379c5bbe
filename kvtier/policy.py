"""The policy interfaces: who leaves a tier, who enters it, what is fetched ahead.

A policy only chooses. It has no locks, pins, accounting or I/O; the brain calls it from one thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from kvtier.types import BlockKey


class EvictionPolicy(ABC):
    """Order the chunks of one tier by how little they will be missed.

    Contract: each key is inserted once until removed; `touch`, `remove` and `parent` may name keys that are
    not here (ignored). The prefix rule holds in every answer: a chunk is not a victim while one that names
    it as parent stays. The brain touches a whole prefix tail first, so that a head is never older than its tail.
    """

    @abstractmethod
    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        """Start to track a chunk that entered the tier."""

    @abstractmethod
    def touch(self, key: BlockKey) -> None:
        """Note one use of a chunk."""

    @abstractmethod
    def remove(self, key: BlockKey) -> None:
        """Stop to track a chunk that left the tier, for whatever reason."""

    @abstractmethod
    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        """Choose up to `n` chunks to evict, best first; removes nothing.

        Never returns a key for which `pinned` is true, nor an ancestor of one.
        """

    def evicted(self, key: BlockKey) -> None:  # noqa: B027 - optional: most policies keep no ghosts
        """Note that a victim of this policy was really evicted (ghost lists); `remove` was called before."""


class AdmissionPolicy(ABC):
    """Decide which chunks enter a tier."""

    @abstractmethod
    def admits(self, key: BlockKey, end_token: int) -> bool:
        """Whether the chunk that ends at `end_token` may enter now."""


class PrefetchPolicy(ABC):
    """Decide which chunks of lower tiers come up before they are asked for."""

    @abstractmethod
    def arrived(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """Keys to bring up now, in order, of a request that arrived with the prefix `keys`."""
