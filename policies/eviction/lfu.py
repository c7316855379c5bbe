"""Least frequently used, with dynamic ageing (LFU-DA; Arlitt et al., 2000)."""

from kvtier.policies.kit.ageing import FrequencyPolicy
from kvtier.types import BlockKey


class LfuPolicy(FrequencyPolicy):
    """Rank by uses plus the age; without the age, what was popular once would never leave."""

    def worth(self, uses: int, key: BlockKey) -> float:
        return uses
