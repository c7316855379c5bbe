"""SIEVE (Zhang et al., NSDI 2024): a FIFO with one bit per chunk and a hand that spares what was used."""

from kvtier.facts import TierFacts
from kvtier.policies.kit.heap import Leaf
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.types import BlockKey


class SievePolicy(PrefixPolicy):
    """Chunks before and behind the hand are two queues; at the end of the one the hand goes on in the other.

    The hand spares a used chunk once and leaves it in its place. A parent whose last child leaves is
    before the hand: its prefix goes from the tail on, as long as nothing of it was used.
    """

    queues = 2

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._visited = self.column("B")
        self._before = 0

    def entered(self, row: int, key: BlockKey) -> None:
        self._visited[row] = 0
        self.place(row, self._before, self.tick)

    def used(self, row: int, key: BlockKey) -> None:
        self._visited[row] = 1

    def pick(self) -> Leaf | None:
        for _ in range(3):  # after a round that spared all, and one that ended amid it
            while leaf := self.pop(self._before):
                if not self._visited[leaf.row]:
                    return leaf
                self._visited[leaf.row] = 0
                self.place(leaf.row, 1 - self._before, leaf.rank)
            self._before = 1 - self._before
        return None
