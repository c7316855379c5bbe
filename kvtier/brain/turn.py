"""A request whose hit has no room now waits once, while reads of others are under way that will make some.

It waits for reads, which have deadlines, and holds nothing meanwhile: nobody waits for who waits for a turn.
"""

from collections.abc import Mapping, Sequence

from kvtier.brain.budgets import Budgets
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.types import TIER0, BlockKey, Priority


class Turn:
    """The wait of one request for slots and for the budgets of the tiers that it reads from."""

    def __init__(
        self,
        state: State,
        budgets: Budgets,
        request: Request,
        keys: Sequence[BlockKey],
        reads: Mapping[LowerTier, int],
    ) -> None:
        """Wait to read `keys`, so many from each tier; at most a deadline, nor longer than computing them takes."""
        self.left = set(keys)
        self._request = request
        self._state = state
        self._budgets = budgets
        self._reads = {lower: min(n, budgets.most(lower)) for lower, n in reads.items()}
        patience_s = max(lower.spec.deadline_s for lower in reads)
        if state.costs.known:
            tokens = sum(end - start for start, end in state.groups.spans(request, keys).values())
            patience_s = min(patience_s, tokens * state.costs.prefill.steady())
        self._until = state.clock() + patience_s

    def over(self) -> bool:
        """Whether there is room now, or no reason to wait for any; then the request asks again. O(1)."""
        over = self._is_over()
        if over:
            self._request.give_up()
        return over

    def _is_over(self) -> bool:
        state = self._state
        if state.clock() >= self._until or not any(low.reads.in_time for low in state.lowers):
            return True
        residency = state.residency
        unpinned = residency.chunks[TIER0] - len(residency.pins)
        if residency.slots.free + unpinned < sum(self._reads.values()):
            return False
        return all(self._budgets.left(low, Priority.DEMAND) >= n for low, n in self._reads.items())
