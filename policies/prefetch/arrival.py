"""Fetch on arrival: a request's whole prefix comes up while it still waits in the queue."""

from collections.abc import Sequence

from kvtier.facts import RequestFacts
from kvtier.policy import Move, PrefetchPolicy


class ArrivalPolicy(PrefetchPolicy):
    """Ask for the whole prefix, in its order; the brain drops what is up already or cannot be used."""

    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        return [Move(group.keys) for group in request.groups]
