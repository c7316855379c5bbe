"""Fetch on arrival: a request's whole prefix comes up while it still waits in the queue."""

from collections.abc import Sequence

from kvtier.policy import PrefetchPolicy
from kvtier.types import BlockKey


class ArrivalPolicy(PrefetchPolicy):
    """Ask for the whole prefix, in its order; the brain drops what is up already or was never stored."""

    def arrived(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        return keys
