"""Clients' own words on how long a conversation may be asked for again."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from kvtier.policies.conversations.lineages import Lineage

_LIMIT = 1 << 16  # lineages; beyond it the word that was given first is forgotten


class Expiry(NamedTuple):
    """One end; void if the lineage was used since, or another was told."""

    at_s: float
    number: int
    used_s: float
    lineage: Lineage


class Expiries:
    """Lineages by the time of their end, of each the last that was told; what is void in the heap is bounded."""

    def __init__(self) -> None:
        self._heap: list[Expiry] = []
        # By the lineage's number, first told first.
        self._told: OrderedDict[int, Expiry] = OrderedDict()

    def add(self, lineage: Lineage, ttl_s: float) -> None:
        """Note that a lineage ends so long after its last use."""
        end = lineage.last_s + ttl_s
        expiry = Expiry(end, lineage.number, lineage.last_s, lineage)
        self._told.pop(lineage.number, None)
        self._told[lineage.number] = expiry
        if len(self._told) > _LIMIT:
            self._told.popitem(last=False)
        heapq.heappush(self._heap, expiry)
        if len(self._heap) > 2 * len(self._told) + 1024:
            self._heap = list(self._told.values())
            heapq.heapify(self._heap)

    def due(self, now: float) -> Iterator[Lineage]:
        """Take the lineages that ended and were not used again."""
        while self._heap and self._heap[0].at_s <= now:
            expiry = heapq.heappop(self._heap)
            if self._told.get(expiry.number) is not expiry:
                continue
            del self._told[expiry.number]
            if expiry.lineage.last_s == expiry.used_s:
                yield expiry.lineage
