"""The policy interfaces: who leaves a tier, who enters it, what moves before it is asked for.

A policy only chooses. It has no locks, pins, accounting or I/O; the brain constructs it with the facts
of its tier (after its own `Config`, if it declares one) and calls it from one thread. A request's
life is told to every policy: `arrived`, `started` (it was scheduled: it waits no more), `departed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from kvtier.facts import RequestFacts, TierFacts
from kvtier.types import BlockKey


class Policy:
    """What all policies share; the calls about requests do nothing unless overridden."""

    def __init__(self, facts: TierFacts) -> None:
        self.facts = facts

    def started(self, request: RequestFacts) -> None:
        """Note that a request waits no more; not called for one that departs before."""


class EvictionPolicy(Policy, ABC):
    """Order the chunks of one tier by how little they will be missed.

    Contract: each key is inserted once until removed; `touch`, `remove` and `parent` may name keys that are
    not here (ignored). The prefix rule holds in every answer: a chunk is not a victim while one that names
    it as parent stays; the policy keeps it, whatever the order of calls.
    """

    scored: ClassVar[bool] = False
    """Whether it asks for scores, so that chunks are sampled for it."""

    @abstractmethod
    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        """Start to track a chunk that entered the tier: its first use."""

    def insert_all(self, keys: Sequence[BlockKey], parents: Sequence[BlockKey | None]) -> None:
        """Insert several, in this order; overridden where that is cheaper than one by one."""
        for key, parent in zip(keys, parents, strict=True):
            self.insert(key, parent)

    @abstractmethod
    def touch(self, key: BlockKey) -> None:
        """Note one more use of a chunk; at most once per request, a prefix tail first."""

    @abstractmethod
    def remove(self, key: BlockKey) -> None:
        """Stop to track a chunk that left the tier, for whatever reason."""

    def remove_all(self, keys: Sequence[BlockKey]) -> None:
        """Remove several, in this order; overridden where that is cheaper than one by one."""
        for key in keys:
            self.remove(key)

    @abstractmethod
    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        """Choose up to `n` chunks to evict, best first; removes nothing.

        Never returns a key for which `pinned` is true, nor an ancestor of one. What waiting requests
        need is pinned, too, as long as there are other victims.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget every chunk and ghost, in time that does not grow with them."""

    def evicted(self, key: BlockKey) -> None:
        """Note that a victim of this policy was really evicted (ghost lists); `remove` was called before."""

    def arrived(self, request: RequestFacts) -> None:
        """Note a new request, with its whole prefix, before anybody asks for it."""

    def departed(self, request: RequestFacts) -> None:
        """Note the end of a request; its keys now include what decoding made."""


class AdmissionPolicy(Policy, ABC):
    """Decide which chunks enter a tier.

    A chunk is asked for as often as it is offered: the answer must not depend on how often. What is
    refused strands its tail, so a policy should decide for prefixes, by the requests that it is told of.
    """

    @abstractmethod
    def admits(self, key: BlockKey, end_token: int) -> bool:
        """Whether the chunk that ends at `end_token` of its sequence may enter now."""

    def arrived(self, request: RequestFacts) -> None:
        """Note a new request, with its whole prefix, before anybody asks for it."""

    def departed(self, request: RequestFacts) -> None:
        """Note the end of a request; its keys now include what decoding made."""


class Move(NamedTuple):
    """What a prefetch policy wants: chunks of one prefix, in its order, to change tiers."""

    keys: Sequence[BlockKey]
    at_s: float = 0.0  # not before, on the facts' clock; looked at when the engine steps anyway
    up: bool = True  # into tier 0; False: out of it, if it is in a lower tier or one takes it
    still: Callable[[], bool] | None = None  # asked when it is due: whether it is wanted still


class PrefetchPolicy(Policy, ABC):
    """Decide which chunks move before they are asked for; its facts are those of tier 0.

    The brain drops what cannot move: it never takes slots that requests need, nor reads what costs more
    than computing.
    """

    @abstractmethod
    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        """Answer a new request, with its whole prefix."""

    def accessed(self, request: RequestFacts, keys: Sequence[BlockKey]) -> Sequence[Move]:
        """Answer a hit of a request, in any tier; `keys` are in prefix order."""
        return ()

    def departed(self, request: RequestFacts) -> Sequence[Move]:
        """Answer the end of a request; its keys now include what decoding made."""
        return ()
