"""How many reads may be under way from each tier, and how many slots reads may have."""

from collections.abc import Sequence

from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.residency import Residency
from kvtier.types import Priority

_ASKED_SHARE = 0.25  # of the slots, for the reads of all tiers whose room is not ours
_MAX_READS = 2048  # under way from one tier; more would not fit into the ranks' queues
_MAX_AHEAD = 512  # under way beside them
_STORES = 16  # a part of the slots that reads leave to stores


class Budgets:
    """A budget for each tier that is ours, and one for all others together, in which what is late does not count.

    What one tier owes takes nothing from another: a late read counts against its own tier only.
    """

    def __init__(
        self, lowers: Sequence[LowerTier], residency: Residency, read_share: float
    ) -> None:
        self._lowers = lowers
        self._residency = residency
        self._slots = residency.slots
        self._read_share = read_share

    @property
    def largest_hit(self) -> int:
        """Return the chunks that one request may hold: the other slots are for stores."""
        return self._slots.n - self._slots.n // _STORES

    @property
    def spare(self) -> int:
        """Return the slots that reads may still fill beside what is pinned or being filled."""
        filling = sum(low.reads.all for low in self._lowers)
        return self.largest_hit - len(self._residency.pins) - filling

    @property
    def room(self) -> int:
        """Return the slots that reads may fill now."""
        return min(self._slots.free, self.spare)

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
