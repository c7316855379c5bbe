"""GreedyDual-Size-Frequency (Cherkasova, 1998): by seconds of prefill saved per byte."""

from kvtier.policies.kit.ageing import FrequencyPolicy
from kvtier.types import BlockKey


class GdsfPolicy(FrequencyPolicy):
    """Rank by age + uses * seconds / bytes.

    Deep chunks save more, because attention over a long context costs more; well compressed ones are cheap.
    """

    def worth(self, uses: int, key: BlockKey) -> float:
        return uses * self.facts.seconds(key) / max(1, self.facts.nbytes(key))
