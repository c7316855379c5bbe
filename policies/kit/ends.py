"""Queues with two ends, for policies whose chunks may be worth least when they are old, or when they are new."""

from kvtier.facts import TierFacts
from kvtier.policies.kit.heap import Leaf, LeafHeap
from kvtier.policies.kit.prefix import PrefixPolicy


class TwoEndedPolicy(PrefixPolicy):
    """Each leaf waits in two heaps under one stamp: what leaves one is void in the other."""

    def __init__(self, facts: TierFacts) -> None:
        self._highest: list[LeafHeap] = []
        super().__init__(facts)

    def pop(self, queue: int) -> Leaf | None:
        leaf = super().pop(queue)
        if leaf is not None:
            self._highest[queue].voided()
        return leaf

    def peek_highest(self, queue: int) -> Leaf | None:
        """Return the leaf of the highest rank of a queue."""
        heap = self._highest[queue]
        while (leaf := heap.top()) and self._kids[leaf.row]:
            heap.pop()
            self._stamps[leaf.row] = 0
        return leaf and leaf._replace(rank=-leaf.rank)

    def pop_highest(self, queue: int) -> Leaf | None:
        """Take the leaf of the highest rank off a queue."""
        leaf = self.peek_highest(queue)
        if leaf is not None:
            self._highest[queue].pop()
            self._stamps[leaf.row] = 0
            self._heaps[queue].voided()
        return leaf

    def put_back(self, leaf: Leaf) -> None:
        self._push(leaf.row)

    def place(self, row: int, queue: int, rank: float) -> None:
        # It enters anew: a heap would learn of a risen rank at its lower end only.
        self._void(row)
        super().place(row, queue, rank)

    def clear(self) -> None:
        for heap in self._highest:
            heap.leave(self._leftovers)
        super().clear()

    def _forget(self) -> None:
        super()._forget()
        self._highest = [LeafHeap(self._stamps) for _ in range(self.queues)]

    def _push(self, row: int) -> None:
        super()._push(row)
        leaf = Leaf(-self.ranks[row], self._stamps[row], row)
        self._highest[self.queue[row]].push(leaf)

    def _void(self, row: int) -> None:
        if self._stamps[row]:
            self._highest[self.queue[row]].voided()
            super()._void(row)
