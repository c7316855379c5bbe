"""W-TinyLFU (Einziger et al., 2017): a small LRU window, behind it what was used most, as a sketch tells."""

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import TierFacts
from kvtier.policies.kit.heap import Leaf
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.policies.kit.sketch import Sketch
from kvtier.types import BlockKey

_WINDOW, _PROBATION, _PROTECTED = range(3)
_BATCH = 0.1  # of all chunks: more than that in the window came when there was room, and need not compete
_MOVES = 256  # put on probation per call, and four per victim: after a scan nearly all chunks are due at once


class WTinyLfuPolicy(PrefixPolicy):
    """New chunks enter the window. Its oldest meets the oldest on probation: who was used less often leaves.

    A use on probation protects; the oldest beyond the protected share goes back on probation.
    """

    queues = 3

    class Config(Struct, frozen=True, kw_only=True):
        """Its options; the defaults are the paper's."""

        window: Annotated[float, Meta(ge=0, le=1)] = 0.01  # of all chunks
        protected: Annotated[float, Meta(ge=0, le=1)] = 0.8  # of those behind the window

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._config = config
        self._sketch = Sketch()
        self._moves = 0  # left to this call
        # the row that lost, and was not evicted yet: asking again is no second contest
        self._beaten = -1

    def entered(self, row: int, key: BlockKey) -> None:
        self._sketch.expect(sum(self.counts))
        self._sketch.add(key)
        self.place(row, _WINDOW, self.tick)

    def used(self, row: int, key: BlockKey) -> None:
        self._sketch.add(key)
        self.place(row, _PROTECTED if self.queue[row] else _WINDOW, self.tick)

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        self._moves = _MOVES + 4 * n
        return super().victims(n, pinned)

    def pick(self) -> Leaf | None:
        self._trim(_PROTECTED, self._config.protected * sum(self.counts[_PROBATION:]))
        self._trim(_WINDOW, (self._config.window + _BATCH) * sum(self.counts))
        if self.counts[_WINDOW] <= self._config.window * sum(self.counts):
            return self.pop(_PROBATION) or self.pop(_PROTECTED) or self.pop(_WINDOW)
        young = self.pop(_WINDOW)
        old = self.pop(_PROBATION)
        if young is None or old is None:
            return young or old or self.pop(_PROTECTED)
        if old.row == self._beaten:
            self.put_back(young)
            return old
        if self._uses(young) > self._uses(old):
            self._beaten = old.row
            self.place(young.row, _PROBATION, self.ranks[young.row])
            return old
        self.put_back(old)
        return young

    def evicted(self, key: BlockKey) -> None:
        self.left(key)
        self._beaten = -1

    def clear(self) -> None:
        super().clear()
        self._beaten = -1
        self._sketch = Sketch()

    def _uses(self, leaf: Leaf) -> int:
        return self._sketch.estimate(self.keys[leaf.row])

    def _trim(self, queue: int, limit: float) -> None:
        """Put the oldest of a queue beyond its limit on probation; what is too much for now, next time."""
        while self._moves > 0 and self.counts[queue] > limit and (leaf := self.pop(queue)):
            self._moves -= 1
            self.place(leaf.row, _PROBATION, self.ranks[leaf.row])
