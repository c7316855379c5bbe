"""ARC (Megiddo and Modha, FAST 2003): recency and frequency, balanced by what was evicted too early."""

from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import TierFacts
from kvtier.policies.kit.ghosts import Ghosts
from kvtier.policies.kit.heap import Leaf
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.types import BlockKey

_RECENT, _FREQUENT = range(2)


class ArcPolicy(PrefixPolicy):
    """Chunks used once (T1) and more often (T2), each least recently used first, and ghosts of both.

    `target` is T1's share of the chunks: a chunk that comes back from T1's ghosts raises it, one from T2's
    lowers it. The capacity is what was held at most: sizes below tier 0 differ. Each list of ghosts is
    as long as the capacity; the paper's are so long that each list with its ghosts is (on the Mooncake
    trace at 1M tokens that finds .069 of the blocks instead of .080).
    """

    queues = 2

    class Config(Struct, frozen=True, kw_only=True):
        ghosts: Annotated[float, Meta(ge=0, le=1000)] = (
            1.0  # length of each list of ghosts, in capacities
        )

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self.target = 0.0
        self._config = config
        self._ghosts = (Ghosts(), Ghosts())
        self._capacity = 0

    def entered(self, row: int, key: BlockKey) -> None:
        again = self._returned(key)
        self.place(row, _FREQUENT if again else _RECENT, self.tick)
        self._capacity = max(self._capacity, sum(self.counts))

    def used(self, row: int, key: BlockKey) -> None:
        self.place(row, _FREQUENT, self.tick)

    def pick(self) -> Leaf | None:
        first = _RECENT if self.counts[_RECENT] > self.target else _FREQUENT
        return self.pop(first) or self.pop(1 - first)

    def evicted(self, key: BlockKey) -> None:
        if gone := self.left(key):
            limit = int(self._config.ghosts * self._capacity)
            self._ghosts[gone.queue].add(key, limit)

    def clear(self) -> None:
        super().clear()
        self.target, self._capacity = 0.0, 0
        self._ghosts = (Ghosts(), Ghosts())

    def _returned(self, key: BlockKey) -> bool:
        """Learn from a ghost that came back; return whether there was one."""
        recent, frequent = self._ghosts
        if key in recent:
            step = max(1.0, len(frequent) / len(recent))
            self.target = min(self.target + step, float(self._capacity))
            return recent.take(key)
        if key in frequent:
            step = max(1.0, len(recent) / len(frequent))
            self.target = max(self.target - step, 0.0)
            return frequent.take(key)
        return False
