"""The policies of one brain: made with the facts of their tiers, and told of every request."""

from collections.abc import Callable, Sequence

from kvtier.brain.agenda import Agenda
from kvtier.brain.core import Core
from kvtier.brain.lower import Lower
from kvtier.brain.plans import LowerTier
from kvtier.brain.requests import Request
from kvtier.brain.view import TierView
from kvtier.brain.waiting import Waiting
from kvtier.facts import TierFacts
from kvtier.policy import AdmissionPolicy, EvictionPolicy, Move, PrefetchPolicy
from kvtier.types import TIER0, BlockKey


class Told:
    """Everybody who is told of requests. The moves they ask for later wait in an agenda."""

    def __init__(
        self,
        core: Core,
        agenda: Agenda,
        tier0: Callable[[TierFacts], EvictionPolicy],
        lower: Sequence[LowerTier],
        admission: Callable[[TierFacts], AdmissionPolicy] | None,
        prefetch: Sequence[Callable[[TierFacts], PrefetchPolicy]],
    ) -> None:
        self._core = core
        arena = self._view(None)
        views = [self._view(low) for low in core.lowers]
        evictions = [tier0(arena)]
        evictions += [spec.eviction(view) for spec, view in zip(lower, views, strict=True)]
        self.admission = admission(arena) if admission else None
        for low, view in zip(core.lowers, views, strict=True):
            low.admission = low.spec.admission(view) if low.spec.admission else None
        admissions = [self.admission, *(low.admission for low in core.lowers)]
        core.ledger.policies = evictions
        core.ledger.hooks.views = [arena, *views]
        core.ledger.hooks.end_of = core.ledger.end
        self._policies: list[EvictionPolicy | AdmissionPolicy] = [*evictions]
        self._policies += filter(None, admissions)
        self._prefetch = [make(arena) for make in prefetch] if core.lowers else []
        self._waiting = Waiting(core.ledger, 1 + len(core.lowers))
        self._agenda = agenda

    def arrived(self, request: Request) -> list[Move]:
        """Tell of a new request; return what is to come up now."""
        self._waiting.arrive(request)
        for policy in self._policies:
            policy.arrived(request.facts)
        now: list[Move] = []
        for prefetch in self._prefetch:
            for move in prefetch.arrived(request.facts):
                if move.up and move.at_s <= self._core.clock():
                    now.append(move)
                else:
                    self._agenda.add((move,))
        return now

    def started(self, request: Request) -> None:
        """Tell, once, that a request was scheduled."""
        if request.started:
            return
        request.started = True
        self._waiting.start(request)
        for policy in (*self._policies, *self._prefetch):
            policy.started(request.facts)

    def accessed(self, request: Request, keys: Sequence[BlockKey]) -> None:
        """Tell prefetch policies of a hit."""
        for policy in self._prefetch:
            self._agenda.add(policy.accessed(request.facts, keys))

    def departed(self, request: Request) -> None:
        """Tell that a request is over."""
        request.started = True
        self._waiting.start(request)
        for policy in self._policies:
            policy.departed(request.facts)
        for prefetch in self._prefetch:
            self._agenda.add(prefetch.departed(request.facts))

    def _view(self, lower: Lower | None) -> TierView:
        core = self._core
        return TierView(
            TIER0 if lower is None else lower.tier,
            ledger=core.ledger,
            layout=core.layout,
            costs=core.costs,
            clock=core.clock,
            capacity=None if lower is None else lower.spec.capacity,
            read=None if lower is None else lower.cost,
        )
