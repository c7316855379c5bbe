"""How many reads may be under way from each tier."""

from collections.abc import Sequence

from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.slots import Slots
from kvtier.types import Priority

_ASKED_SHARE = 0.25  # of the slots, for the reads of all tiers whose room is not ours
_MAX_READS = 2048  # under way from one tier; more would not fit into the ranks' queues
_MAX_AHEAD = 512  # under way beside them


class Budgets:
    """A budget for each tier that is ours, and one for all others together, in which what is late does not count.

    What one tier owes takes nothing from another: a late read counts against its own tier only.
    """

    def __init__(self, lowers: Sequence[LowerTier], slots: Slots, read_share: float) -> None:
        self._lowers = lowers
        self._slots = slots
        self._read_share = read_share

    def most(self, lower: LowerTier) -> int:
        """Return how many reads that somebody waits for may be under way from a tier."""
        return min(self._share(lower), _MAX_READS)

    def left(self, lower: LowerTier, priority: Priority) -> int:
        """Return how many reads more may be ordered from a tier; reads ahead never stand in a request's way."""
        if priority is Priority.PREFETCH:
            return min(self._share(lower), _MAX_AHEAD) - lower.reads.all
        left = self.most(lower) - len(lower.reads.demanded)
        if lower.space is None:
            others = (low for low in self._lowers if not low.space and low is not lower)
            left -= sum(low.reads.in_time for low in others)
        return left

    def _share(self, lower: LowerTier) -> int:
        share = _ASKED_SHARE if lower.space is None else self._read_share
        return int(self._slots.n * share)
