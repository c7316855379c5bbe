"""Is a request's hit worth its wait: what reading it costs against what computing it would."""

from collections import Counter
from collections.abc import Iterable, Sequence

from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.requests import Patience, Request
from kvtier.brain.state import State
from kvtier.brain.why import Why
from kvtier.types import BlockKey


class Worth:
    """Weighs one request's hit. Where the engine's own speed is not known, every hit is worth the longest wait."""

    def __init__(self, state: State, max_wait_s: float) -> None:
        self._state = state
        self._max_wait_s = max_wait_s

    def patience(self, request: Request, missing: Sequence[BlockKey]) -> Patience:
        """Return how long a request waits at most: no longer than computing what is missing takes.

        Reads that were ordered have the tiers' deadline in any case: an answer takes some steps, whatever its size.
        """
        costs, most = self._state.costs, self._max_wait_s
        spans = self._state.groups.spans(request, missing).values()
        if not costs.known or not spans:
            return Patience(most, most, Why.LATE)
        tokens = max(end for _, end in spans) - min(start for start, _ in spans)
        room_s = tokens * costs.prefill.steady()
        hit_s = max([room_s, *(lower.spec.deadline_s for lower in self._state.lowers)])
        return Patience(
            min(room_s, most), min(hit_s, most), Why.TOO_DEAR if hit_s < most else Why.LATE
        )

    def too_dear(
        self,
        request: Request,
        wanted: Sequence[BlockKey],
        missing: Sequence[BlockKey],
        reads: Iterable[tuple[BlockKey, LowerTier]],
    ) -> bool:
        """Whether to compute from the first missing chunk on is cheaper than to make these reads and to load."""
        costs, groups = self._state.costs, self._state.groups
        if not costs.known:
            return False
        spans = groups.spans(request, wanted)
        starts = [spans[key][0] for key in missing if key in spans]
        if not starts:
            return False
        first = min(starts)
        tokens = max(end for _, end in spans.values()) - first
        per_tier: Counter[LowerTier] = Counter()
        for key, lower in reads:
            per_tier[lower] += lower.nbytes(key)
        read_s = sum(lower.cost.estimate(nbytes) for lower, nbytes in per_tier.items())
        loaded = [key for key, (_, end) in spans.items() if end > first]
        return costs.dearer(read_s, sum(groups.group(key).nbytes for key in loaded), tokens)
