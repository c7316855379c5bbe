"""GreedyDual-Size-Frequency (Cherkasova, 1998): by seconds of prefill saved per byte."""

from kvtier.facts import TierFacts
from kvtier.policies.prefix import PrefixPolicy
from kvtier.types import BlockKey


class GdsfPolicy(PrefixPolicy):
    """Rank by age + uses * seconds / bytes; the age is the rank of what was evicted last.

    Deep chunks save more, because attention over a long context costs more; well compressed ones are cheap.
    """

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._uses = self.column("I")
        self._age = 0.0

    def entered(self, row: int, key: BlockKey) -> None:
        self.used(row, key)

    def used(self, row: int, key: BlockKey) -> None:
        self._uses[row] += 1
        worth = self._uses[row] * self.facts.seconds(key) / max(1, self.facts.nbytes(key))
        self.place(row, 0, self._age + worth)

    def evicted(self, key: BlockKey) -> None:
        if gone := self.left(key):
            self._age = max(self._age, gone.rank)

    def clear(self) -> None:
        super().clear()
        self._age = 0.0
