"""Policies whose cache grows old: ranks start from the rank of what was evicted last (GreedyDual, Young 1994)."""

from abc import abstractmethod

from kvtier.facts import TierFacts
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.types import BlockKey


class AgeingPolicy(PrefixPolicy):
    """Keeps `age`, to which subclasses add what a chunk is worth."""

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self.age = 0.0

    def evicted(self, key: BlockKey) -> None:
        if gone := self.left(key):
            self.age = max(self.age, gone.rank)

    def clear(self) -> None:
        super().clear()
        self.age = 0.0


class FrequencyPolicy(AgeingPolicy):
    """Ranks by age plus a worth that grows with the uses since the chunk came."""

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._uses = self.column("I")

    @abstractmethod
    def worth(self, uses: int, key: BlockKey) -> float:
        """Return what a chunk that was used so often is worth."""

    def used(self, row: int, key: BlockKey) -> None:
        self._uses[row] += 1
        self.place(row, 0, self.age + self.worth(self._uses[row], key))
