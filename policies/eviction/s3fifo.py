"""S3-FIFO (Yang et al., SOSP 2023): a small queue that filters, a main queue, and ghosts."""

from msgspec import Struct

from kvtier.facts import TierFacts
from kvtier.policies.ghosts import Ghosts
from kvtier.policies.prefix import Leaf, PrefixPolicy
from kvtier.types import BlockKey

_SMALL, _MAIN = range(2)
_MAX_USES = 3


class S3FifoPolicy(PrefixPolicy):
    """New chunks enter the small queue, those that were evicted from it not long ago the main one.

    At the end of the small queue what was used often enough moves to the main one; there each use is worth
    one more round.
    """

    queues = 2

    class Config(Struct, frozen=True, kw_only=True):
        """Its options; the defaults are the paper's."""

        small: float = 0.1  # of all chunks
        promote_at: int = 2  # uses after the first that move a chunk to the main queue

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._config = config
        self._uses = self.column("B")
        self._ghosts = Ghosts()

    def entered(self, row: int, key: BlockKey) -> None:
        self._uses[row] = 0
        self.place(row, _MAIN if self._ghosts.take(key) else _SMALL, self.tick)

    def used(self, row: int, key: BlockKey) -> None:
        self._uses[row] = min(self._uses[row] + 1, _MAX_USES)

    def pick(self) -> Leaf | None:
        while True:
            small = self.counts[_SMALL] >= self._config.small * sum(self.counts)
            leaf = self.pop(_SMALL if small else _MAIN) or self.pop(_MAIN if small else _SMALL)
            if leaf is None or not self._spare_once(leaf.row):
                return leaf

    def evicted(self, key: BlockKey) -> None:
        if self.gone and self.gone[:2] == (key, _SMALL):
            self._ghosts.add(key, self.counts[_MAIN])

    def clear(self) -> None:
        super().clear()
        self._ghosts = Ghosts()

    def _spare_once(self, row: int) -> bool:
        uses = self._uses[row]
        if uses < (self._config.promote_at if self.queue[row] == _SMALL else 1):
            return False
        self._uses[row] = 0 if self.queue[row] == _SMALL else uses - 1
        self.tick += 1
        self.place(row, _MAIN, self.tick)
        return True
