"""Least frequently used, with dynamic ageing (LFU-DA; Arlitt et al., 2000)."""

from kvtier.facts import TierFacts
from kvtier.policies.prefix import PrefixPolicy
from kvtier.types import BlockKey


class LfuPolicy(PrefixPolicy):
    """Rank by uses since the chunk came, plus the age: the rank of what was evicted last.

    Without the age, what was popular once would never leave.
    """

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._uses = self.column("I")
        self._age = 0.0

    def entered(self, row: int, key: BlockKey) -> None:
        self.used(row, key)

    def used(self, row: int, key: BlockKey) -> None:
        self._uses[row] += 1
        self.place(row, 0, self._age + self._uses[row])

    def evicted(self, key: BlockKey) -> None:
        if gone := self.left(key):
            self._age = max(self._age, gone.rank)

    def clear(self) -> None:
        super().clear()
        self._age = 0.0
