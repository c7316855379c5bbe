"""Queues with two ends, for policies whose chunks may be worth least when they are old, or when they are new."""

import heapq

from kvtier.facts import TierFacts
from kvtier.policies.kit.prefix import Leaf, PrefixPolicy


class TwoEndedPolicy(PrefixPolicy):
    """Each leaf waits in two heaps under one stamp: what leaves one is void in the other."""

    def __init__(self, facts: TierFacts) -> None:
        self._highest: list[list[Leaf]] = []
        super().__init__(facts)

    def pop_highest(self, queue: int) -> Leaf | None:
        """Take the leaf of the highest rank off a queue."""
        heap, stamps = self._highest[queue], self._stamps
        while heap:
            leaf = heapq.heappop(heap)
            if stamps[leaf.row] != leaf.stamp:
                continue
            stamps[leaf.row] = 0
            if not self._kids[leaf.row]:
                return Leaf(-leaf.rank, leaf.stamp, leaf.row)
        return None

    def put_back(self, leaf: Leaf) -> None:
        self._push(leaf.row)

    def place(self, row: int, queue: int, rank: float) -> None:
        # It enters anew: a heap would learn of a risen rank at its lower end only.
        self._stamps[row] = 0
        super().place(row, queue, rank)

    def _forget(self) -> None:
        super()._forget()
        self._highest = [[] for _ in range(self.queues)]

    def _push(self, row: int) -> None:
        super()._push(row)
        leaf = Leaf(-self.ranks[row], self._stamps[row], row)
        heapq.heappush(self._highest[self.queue[row]], leaf)

    def _tidy(self, queue: int) -> None:
        super()._tidy(queue)
        self._sweep(self._highest[queue], queue)
