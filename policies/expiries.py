"""Clients' own words on how long a conversation may be asked for again."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from kvtier.policies.lineages import Lineage


class Expiry(NamedTuple):
    """One end; void if the lineage was used since."""

    at_s: float
    number: int
    used_s: float
    lineage: Lineage


class Expiries:
    """Lineages by the time of their end."""

    def __init__(self) -> None:
        self._heap: list[Expiry] = []

    def add(self, lineage: Lineage, ttl_s: float) -> None:
        """Note that a lineage ends so long after its last use."""
        end = lineage.last_s + ttl_s
        heapq.heappush(self._heap, Expiry(end, lineage.number, lineage.last_s, lineage))

    def due(self, now: float) -> Iterator[Lineage]:
        """Take the lineages that ended and were not used again."""
        while self._heap and self._heap[0].at_s <= now:
            expiry = heapq.heappop(self._heap)
            if expiry.lineage.last_s == expiry.used_s:
                yield expiry.lineage
