"""One tier of the brain as its policies see it."""

from collections.abc import Callable

from kvtier.brain.cost import Costs, ReadCost
from kvtier.brain.ledger import Ledger
from kvtier.brain.requests import Layout
from kvtier.facts import TierFacts
from kvtier.types import TIER0, BlockKey


class TierView(TierFacts):
    """Answers from the brain's columns; nothing is copied. Without `read` the tier is the arena."""

    def __init__(
        self,
        tier: int,
        *,
        ledger: Ledger,
        layout: Layout,
        costs: Costs,
        clock: Callable[[], float],
        capacity: int | None = None,
        read: ReadCost | None = None,
    ) -> None:
        self._tier = tier
        self._ledger = ledger
        self._layout = layout
        self._costs = costs
        self._clock = clock
        self._capacity = capacity
        self._read = read

    def clock(self) -> float:
        return self._clock()

    @property
    def capacity(self) -> int | None:
        if self._tier != TIER0:
            return self._capacity
        largest = max(group.nbytes for group in self._layout.groups)
        return self._ledger.slots.n * largest or None

    def nbytes(self, key: BlockKey) -> int:
        index = self._ledger.index
        row = index.rows.get(key)
        if self._tier != TIER0 and row is not None and index.flags[row] >> self._tier & 1:
            return index.sizes[self._tier - 1][row]
        return self._layout.group(key).nbytes

    def seconds(self, key: BlockKey) -> float:
        index = self._ledger.index
        row = index.rows.get(key)
        tokens = self._layout.group(key).chunk_tokens
        end = tokens if row is None else max(index.ends[row], tokens)
        return self._costs.prefill_s(end - tokens, end)

    def prefill_s(self, start: int, end: int) -> float:
        return self._costs.prefill_s(start, end)

    def read_s(self, nbytes: int) -> float:
        if self._read is None:
            return nbytes * self._costs.load()
        return self._read.estimate(nbytes)

    def score(self, key: BlockKey) -> float | None:
        return self._ledger.score(key)
