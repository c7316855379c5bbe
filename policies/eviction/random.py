"""Random eviction: the floor that every other policy must beat."""

import random

from msgspec import Struct

from kvtier.facts import TierFacts
from kvtier.policies.kit.ageing import AgeingPolicy
from kvtier.types import BlockKey


class RandomPolicy(AgeingPolicy):
    """Each leaf is equally likely to leave next, however long it has been here.

    A chunk's rank is the moment at which it would leave, exponentially distributed from now on: such a
    clock has no memory, so that survivors are as likely victims as newcomers.
    """

    class Config(Struct, frozen=True, kw_only=True):
        seed: int = 0

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._random = random.Random(config.seed)

    def entered(self, row: int, key: BlockKey) -> None:
        self.place(row, 0, self.age + self._random.expovariate(1.0))

    def used(self, row: int, key: BlockKey) -> None:
        """A use means nothing."""
