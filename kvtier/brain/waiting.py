"""What requests that wait in the queue will ask for: spared as long as there are other victims.

The brain does this, not a policy, so that it holds under each of them. One chunk per request, tier
and prefix is enough: a policy spares the ancestors of what is pinned. It is no pin: a queue that needs more
than the tier holds must not keep running requests from storing.
"""

from collections.abc import Sequence

from kvtier.brain.ledger import Ledger
from kvtier.brain.requests import Request
from kvtier.facts import GroupKeys
from kvtier.index import TIERS
from kvtier.types import BlockKey


class Waiting:
    """Keeps `Ledger.awaited`: how many waiting requests need a chunk and its ancestors."""

    def __init__(self, ledger: Ledger, tiers: int) -> None:
        self._ledger = ledger
        self._tiers = tiers

    def arrive(self, request: Request) -> None:
        """Spare what the tiers hold of a request's prefix; of a window group, its window."""
        awaited = self._ledger.awaited
        for group in request.facts.groups:
            request.awaited += self._needed(group)
        for key in request.awaited:
            awaited[key] = awaited.get(key, 0) + 1

    def start(self, request: Request) -> None:
        """Spare nothing any more for a request that was scheduled or left."""
        awaited = self._ledger.awaited
        for key in request.awaited:
            left = awaited[key] - 1
            if left:
                awaited[key] = left
            else:
                del awaited[key]
        request.awaited.clear()

    def _needed(self, group: GroupKeys) -> list[BlockKey]:
        if group.window_chunks is not None:
            window = group.keys[-group.window_chunks :]
            return [key for key in window if self._ledger.index.flags_of(key) & TIERS]
        ends = [self._deepest(group.keys, 1 << tier) for tier in range(self._tiers)]
        return [group.keys[end - 1] for end in ends if end]

    def _deepest(self, keys: Sequence[BlockKey], tier: int) -> int:
        """Return how many chunks from the start a tier holds, by bisection: a prefix has no holes."""
        flags_of = self._ledger.index.flags_of
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if flags_of(keys[middle]) & tier:
                low = middle + 1
            else:
                high = middle
        return low
