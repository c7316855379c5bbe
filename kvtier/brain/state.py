"""What the parts of one brain share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvtier.brain.beliefs import Beliefs
from kvtier.brain.cost import Costs, ReadCost
from kvtier.brain.groups import Groups
from kvtier.brain.hooks import Hooks
from kvtier.brain.index import IN_TIER0, Index
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operation, Operations
from kvtier.brain.plans import TierSpec
from kvtier.brain.policies import PolicySet, TierView
from kvtier.brain.read_ahead import ReadAhead
from kvtier.brain.requests import Request
from kvtier.brain.residency import Residency
from kvtier.brain.slots import Slots
from kvtier.brain.space import make_space, worst_case
from kvtier.brain.stats import CacheStats, TierStats
from kvtier.brain.victims import Victims
from kvtier.brain.why import Why
from kvtier.facts import TierFacts
from kvtier.hook import HookSet
from kvtier.policy import AdmissionPolicy, EvictionPolicy, PrefetchPolicy
from kvtier.types import MAX_LOWER_TIERS, NO_SLOT, TIER0, GroupSpec

if TYPE_CHECKING:
    from kvtier.brain.copies import CopyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state of one brain, without any decision."""

    groups: Groups
    policies: PolicySet
    residency: Residency
    victims: Victims
    hooks: Hooks
    operations: Operations
    lowers: tuple[LowerTier, ...]
    requests: dict[str, Request]
    costs: Costs
    kept: int  # the tiers whose chunks stay until the brain says otherwise, as bits
    counters: CacheStats
    arena: TierStats
    ahead: ReadAhead
    copies: dict[int, "CopyPlan"]  # between the device and slots, under way
    clock: Callable[[], float]

    def end_epoch(self) -> list[Operation]:
        """Begin a new epoch: what was not sent never will be, and what is under way and has a slot is cancelled.

        Returns:
            The operations of the old epoch that are under way.
        """
        old, unsent = self.operations.end_epoch()
        for operation in unsent:
            if operation.op.slot != NO_SLOT:
                self.residency.slots.done(operation.op.slot)
        for operation in old:
            if operation.op.slot != NO_SLOT:
                self.operations.cancel(operation)
        return old

    def refuse_load(self, request: Request, why: Why) -> None:
        """Count why a request's hit ends early: its first reason, until it starts again."""
        if request.refuse(why):
            self.counters.load_refusals[why] += 1


def make_state(  # noqa: PLR0913 - as of `TieredCache`
    *,
    groups: Sequence[GroupSpec],
    ranks: int,
    tier0: Callable[[TierFacts], EvictionPolicy],
    lower: Sequence[TierSpec],
    admission: Callable[[TierFacts], AdmissionPolicy] | None,
    prefetch: Sequence[Callable[[TierFacts], PrefetchPolicy]],
    hooks: HookSet,
    clock: Callable[[], float],
    costs: Costs,
    events: bool,
    arena: str,
) -> State:
    """Make the parts in the order in which they need each other."""
    assert len(lower) <= MAX_LOWER_TIERS
    index, slots, shape = Index(len(lower)), Slots(), Groups(groups)
    reads = [ReadCost(clock, spec.medium) for spec in lower]
    top = TierView(
        tier=TIER0, index=index, slots=slots, groups=shape, costs=costs, now=clock, spec=None
    )
    views = [top]
    for tier, (spec, read) in enumerate(zip(lower, reads, strict=True), 1):
        views.append(replace(top, tier=tier, spec=spec, read=read))
    policies = PolicySet(views, tier0, admission, prefetch)
    names = [arena, *(spec.name for spec in lower)]
    called = Hooks(hooks, names, views, index.end)
    residency = Residency(names, index, slots, policies.eviction, clock=clock, events=events)
    operations = Operations(ranks, clock)
    largest = max(worst_case(group.nbytes) for group in groups)
    lowers = [
        LowerTier(
            tier,
            spec,
            residency=residency,
            operations=operations,
            cost=reads[tier - 1],
            admission=policies.admission[tier],
            space=make_space(tier, spec, largest, ranks, index, shape, clock),
            beliefs=Beliefs(tier, residency, largest, clock) if spec.capacity is None else None,
            clock=clock,
        )
        for tier, spec in enumerate(lower, 1)
    ]
    counters = CacheStats()
    return State(
        groups=shape,
        policies=policies,
        residency=residency,
        victims=Victims(index, policies.eviction, called),
        hooks=called,
        operations=operations,
        lowers=tuple(lowers),
        requests={},
        costs=costs,
        kept=IN_TIER0 | sum(1 << lower.tier for lower in lowers if lower.space),
        counters=counters,
        arena=TierStats(name=names[TIER0]),
        ahead=ReadAhead(counters),
        copies={},
        clock=clock,
    )
