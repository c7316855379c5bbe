"""Whom to evict: the policies choose, what is needed or vetoed is spared."""

from collections.abc import Callable, Container, Sequence

from kvtier.brain.hooks import Hooks
from kvtier.brain.index import TIERS, Index
from kvtier.brain.requests import Request
from kvtier.facts import GroupKeys
from kvtier.hook import HookKind
from kvtier.policy import EvictionPolicy
from kvtier.types import BlockKey

_MAX_LOOKS = 1024


class Victims:
    """Asks the policy of a tier, again where what it chose is needed by a waiting request or a hook objects.

    What requests that wait in the queue will ask for is spared as long as others are found in reasonable time: a
    queue that awaits all of a large tier must not cost a search through all of it with every store. The brain does
    this, not a policy, so that it holds under each of them. One chunk per request, tier and prefix is enough: a
    policy spares the ancestors of what is pinned. It is no pin: a queue that needs more than the tier holds must
    not keep running requests from storing.
    """

    def __init__(self, index: Index, policies: Sequence[EvictionPolicy], hooks: Hooks) -> None:
        self.awaited: dict[BlockKey, int] = {}  # by how many waiting requests, with its ancestors
        self._index = index
        self._policies = policies
        self._hooks = hooks

    def spare(self, request: Request) -> None:
        """Spare what the tiers hold of the prefix of a request that waits; of a window group, its window."""
        for group in request.facts.groups:
            request.spare(self._needed(group))
        for key in request.awaited:
            self.awaited[key] = self.awaited.get(key, 0) + 1

    def release(self, request: Request) -> None:
        """Spare nothing any more for a request that was scheduled or left."""
        for key in request.release():
            left = self.awaited[key] - 1
            if left:
                self.awaited[key] = left
            else:
                del self.awaited[key]

    def choose(
        self, tier: int, n: int, pinned: Container[BlockKey], *, needed: bool = True
    ) -> list[BlockKey]:
        """Choose up to `n` chunks to evict.

        If `needed`, those that waiting requests need or hooks refuse to evict come last, else never.
        """
        policy, awaited = self._policies[tier], self.awaited
        hooked = self._hooks.watches(HookKind.EVICT)
        if not awaited and not hooked:
            return policy.victims(n, pinned.__contains__)
        chosen = policy.victims(n, self._spared(pinned, _MAX_LOOKS + n if needed else None))
        if hooked:
            chosen = self._unless_vetoed(tier, n, pinned, chosen)
        if needed and len(chosen) < n:
            first = set(chosen)
            more = policy.victims(n, pinned.__contains__)
            chosen += [key for key in more if key not in first][: n - len(chosen)]
        return chosen

    def _spared(self, pinned: Container[BlockKey], looks: int | None) -> Callable[[BlockKey], bool]:
        """Return what tells whom to spare; after so many looks at what is not pinned, the pinned only."""
        awaited = self.awaited
        if looks is None:
            return lambda key: key in pinned or key in awaited
        left = looks

        def spared(key: BlockKey) -> bool:
            nonlocal left
            if key in pinned:
                return True
            left -= 1
            return left >= 0 and key in awaited

        return spared

    def _unless_vetoed(
        self, tier: int, n: int, pinned: Container[BlockKey], chosen: list[BlockKey]
    ) -> list[BlockKey]:
        """Ask the hooks for each victim, and choose again without those they refuse; they may refuse a few."""
        asked: set[BlockKey] = set()
        vetoed: set[BlockKey] = set()
        while len(vetoed) < self._hooks.max_vetoes:
            fresh = [key for key in chosen if key not in asked]
            before = len(vetoed)
            for key in fresh:
                asked.add(key)
                if not self._hooks.agree(HookKind.EVICT, tier, key):
                    vetoed.add(key)
                    break
            if len(vetoed) == before:
                return chosen
            chosen = self._policies[tier].victims(
                n, lambda key: key in pinned or key in self.awaited or key in vetoed
            )
        return chosen

    def _needed(self, group: GroupKeys) -> list[BlockKey]:
        if group.window_chunks is not None:
            window = group.keys[-group.window_chunks :]
            return [key for key in window if self._index.flags_of(key) & TIERS]
        ends = [self._deepest(group.keys, 1 << tier) for tier in range(len(self._policies))]
        return [group.keys[end - 1] for end in ends if end]

    def _deepest(self, keys: Sequence[BlockKey], tier: int) -> int:
        """Return how many chunks from the start a tier holds, by bisection: a prefix has no holes."""
        flags_of = self._index.flags_of
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if flags_of(keys[middle]) & tier:
                low = middle + 1
            else:
                high = middle
        return low
