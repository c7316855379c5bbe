"""S3-FIFO (Yang et al., SOSP 2023): a small queue that filters, a main queue, and ghosts."""

from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import TierFacts
from kvtier.policies.kit.ghosts import Ghosts
from kvtier.policies.kit.heap import Leaf
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.types import BlockKey

_SMALL, _MAIN = range(2)
_MAX_USES = 3


class S3FifoPolicy(PrefixPolicy):
    """New chunks enter the small queue, those that were evicted from it not long ago the main one.

    At the end of the small queue what was used often enough moves to the main one; there each use is worth
    one more round. A chunk that has children takes no part in the rounds; it is charged for them when the
    last child leaves, or the heads of forgotten prefixes would stay (on the Mooncake trace at 3M tokens
    that costs .134 instead of .153 of the blocks).
    """

    queues = 2

    class Config(Struct, frozen=True, kw_only=True):
        """Its options; the defaults are the paper's."""

        small: Annotated[float, Meta(gt=0, le=1)] = 0.1  # of all chunks
        promote_at: Annotated[int, Meta(ge=1)] = (
            2  # uses after the first that move a chunk to the main queue
        )

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._config = config
        self._uses = self.column("B")
        self._ghosts = Ghosts()
        self._capacity = 0  # what was held at most: sizes below tier 0 differ
        self._hand = 0.0  # the rank up to which the main queue was seen

    def entered(self, row: int, key: BlockKey) -> None:
        self._capacity = max(self._capacity, sum(self.counts) + 1)
        if self._ghosts.take(key):
            self._to_main(row)
        else:
            self.place(row, _SMALL, self.tick)

    def used(self, row: int, key: BlockKey) -> None:
        self._uses[row] = min(self._uses[row] + 1, _MAX_USES)

    def pick(self) -> Leaf | None:
        while True:
            first = (
                _SMALL if self.counts[_SMALL] >= self._config.small * sum(self.counts) else _MAIN
            )
            leaf = self.pop(first) or self.pop(1 - first)
            if leaf is None or not self._spare_once(leaf.row):
                return leaf

    def evicted(self, key: BlockKey) -> None:
        gone = self.left(key)
        if gone and gone.queue == _SMALL:
            self._ghosts.add(key, int((1 - self._config.small) * self._capacity))

    def clear(self) -> None:
        super().clear()
        self._ghosts = Ghosts()
        self._capacity = 0
        self._hand = 0.0

    def _spare_once(self, row: int) -> bool:
        if self.queue[row] == _SMALL:
            promoted = self._uses[row] >= self._config.promote_at
            if promoted:
                self._to_main(row)
            return promoted
        uses = self._uses[row] - self._missed(row)
        self._hand = max(self._hand, self.ranks[row])
        if uses <= 0:
            self._uses[row] = 0
            return False
        self._uses[row] = uses - 1
        self.tick += 1
        self.place(row, _MAIN, self.tick)
        return True

    def _missed(self, row: int) -> int:
        """Return the rounds of the main queue that a chunk sat out; one takes as long as the queue is now."""
        behind = self._hand - self.ranks[row]
        return 1 + int(behind / max(1.0, self.tick - self._hand)) if behind > 0 else 0

    def _to_main(self, row: int) -> None:
        """Move a chunk, and its prefix before it: a parent in the small queue could never leave that."""
        self.tick += 1
        self._uses[row] = 0
        self.place(row, _MAIN, self.tick)
        for above in self.above(row):
            if self.queue[above] == _MAIN:
                return
            self._uses[above] = 0
            self.place(above, _MAIN, self.tick)
