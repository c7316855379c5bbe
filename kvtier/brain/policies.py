"""The policies of one brain, made with the facts of their tiers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.brain.cost import Costs, ReadCost
from kvtier.brain.groups import Groups
from kvtier.brain.index import Index
from kvtier.brain.plans import TierSpec
from kvtier.brain.slots import Slots
from kvtier.facts import TierFacts
from kvtier.policy import AdmissionPolicy, EvictionPolicy, PrefetchPolicy
from kvtier.types import TIER0, BlockKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TierView(TierFacts):
    """One tier as its policies see it: answers from the brain's columns, nothing is copied."""

    tier: int
    index: Index
    slots: Slots
    groups: Groups
    costs: Costs
    now: Callable[[], float]
    spec: TierSpec | None = None  # None: the arena
    read: ReadCost | None = None

    def clock(self) -> float:
        return self.now()

    @property
    def capacity(self) -> int | None:
        if self.spec is not None:
            return self.spec.capacity
        return self.slots.n * max(group.nbytes for group in self.groups.specs) or None

    def nbytes(self, key: BlockKey) -> int:
        row = self.index.rows.get(key)
        if self.tier != TIER0 and row is not None and self.index.flags[row] >> self.tier & 1:
            return self.index.sizes[self.tier - 1][row]
        return self.groups.group(key).nbytes

    def seconds(self, key: BlockKey) -> float:
        tokens = self.groups.group(key).chunk_tokens
        end = max(self.index.end(key), tokens)
        return self.costs.prefill_s(end - tokens, end)

    def prefill_s(self, start: int, end: int) -> float:
        return self.costs.prefill_s(start, end)

    def read_s(self, nbytes: int) -> float:
        if self.read is None:
            return nbytes * self.costs.load()
        return self.read.estimate(nbytes)

    def score(self, key: BlockKey) -> float | None:
        return self.index.score(key)


class NoEviction(EvictionPolicy):
    """The policy of a tier whose room is not ours: it tracks nothing and has no victims."""

    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        pass

    def touch(self, key: BlockKey) -> None:
        pass

    def remove(self, key: BlockKey) -> None:
        pass

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        return []

    def clear(self) -> None:
        pass


class PolicySet:
    """One eviction policy per tier, the admission policies of those that have one, and what reads ahead."""

    def __init__(
        self,
        views: Sequence[TierView],
        tier0: Callable[[TierFacts], EvictionPolicy],
        admission: Callable[[TierFacts], AdmissionPolicy] | None,
        prefetch: Sequence[Callable[[TierFacts], PrefetchPolicy]],
    ) -> None:
        lower = [view.spec for view in views if view.spec is not None]
        evictions = [tier0, *(spec.eviction or NoEviction for spec in lower)]
        admissions = [admission, *(spec.admission for spec in lower)]
        self.eviction = [make(view) for make, view in zip(evictions, views, strict=True)]
        self.admission = [
            make(view) if make else None for make, view in zip(admissions, views, strict=True)
        ]
        self.prefetch = [make(views[TIER0]) for make in prefetch] if lower else []
