"""The policies of one brain: made with the facts of their tiers, and told of every request."""

from collections.abc import Callable, Sequence

from kvtier.brain.cost import Costs, ReadCost
from kvtier.brain.groups import Groups
from kvtier.brain.index import TIERS
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.plans import TierSpec
from kvtier.brain.prefetch import Agenda
from kvtier.brain.requests import Request
from kvtier.brain.residency import Residency
from kvtier.brain.state import State
from kvtier.facts import GroupKeys, TierFacts
from kvtier.policy import AdmissionPolicy, EvictionPolicy, Move, PrefetchPolicy
from kvtier.types import TIER0, BlockKey


class TierView(TierFacts):
    """Answers from the brain's columns; nothing is copied. Without `read` the tier is the arena."""

    def __init__(
        self,
        tier: int,
        *,
        residency: Residency,
        groups: Groups,
        costs: Costs,
        clock: Callable[[], float],
        capacity: int | None = None,
        read: ReadCost | None = None,
    ) -> None:
        self._tier = tier
        self._residency = residency
        self._groups = groups
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
        largest = max(group.nbytes for group in self._groups.specs)
        return self._residency.slots.n * largest or None

    def nbytes(self, key: BlockKey) -> int:
        index = self._residency.index
        row = index.rows.get(key)
        if self._tier != TIER0 and row is not None and index.flags[row] >> self._tier & 1:
            return index.sizes[self._tier - 1][row]
        return self._groups.group(key).nbytes

    def seconds(self, key: BlockKey) -> float:
        index = self._residency.index
        row = index.rows.get(key)
        tokens = self._groups.group(key).chunk_tokens
        end = tokens if row is None else max(index.ends[row], tokens)
        return self._costs.prefill_s(end - tokens, end)

    def prefill_s(self, start: int, end: int) -> float:
        return self._costs.prefill_s(start, end)

    def read_s(self, nbytes: int) -> float:
        if self._read is None:
            return nbytes * self._costs.load()
        return self._read.estimate(nbytes)

    def score(self, key: BlockKey) -> float | None:
        return self._residency.score(key)


class Spared:
    """Keeps `Residency.awaited`: what requests that wait in the queue will ask for, spared while there are other victims.

    The brain does this, not a policy, so that it holds under each of them. One chunk per request, tier
    and prefix is enough: a policy spares the ancestors of what is pinned. It is no pin: a queue that needs more
    than the tier holds must not keep running requests from storing.
    """

    def __init__(self, residency: Residency, tiers: int) -> None:
        self._residency = residency
        self._tiers = tiers

    def arrive(self, request: Request) -> None:
        """Spare what the tiers hold of a request's prefix; of a window group, its window."""
        awaited = self._residency.awaited
        for group in request.facts.groups:
            request.awaited += self._needed(group)
        for key in request.awaited:
            awaited[key] = awaited.get(key, 0) + 1

    def start(self, request: Request) -> None:
        """Spare nothing any more for a request that was scheduled or left."""
        awaited = self._residency.awaited
        for key in request.awaited:
            left = awaited[key] - 1
            if left:
                awaited[key] = left
            else:
                del awaited[key]
        request.awaited.clear()

    def _needed(self, group: GroupKeys) -> list[BlockKey]:
        if group.window_chunks is not None:
            window = group.keys[-group.window_chunks :]
            return [key for key in window if self._residency.index.flags_of(key) & TIERS]
        ends = [self._deepest(group.keys, 1 << tier) for tier in range(self._tiers)]
        return [group.keys[end - 1] for end in ends if end]

    def _deepest(self, keys: Sequence[BlockKey], tier: int) -> int:
        """Return how many chunks from the start a tier holds, by bisection: a prefix has no holes."""
        flags_of = self._residency.index.flags_of
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if flags_of(keys[middle]) & tier:
                low = middle + 1
            else:
                high = middle
        return low


class Policies:
    """Everybody who is told of requests. The moves they ask for later wait in an agenda."""

    def __init__(
        self,
        state: State,
        agenda: Agenda,
        tier0: Callable[[TierFacts], EvictionPolicy],
        lower: Sequence[TierSpec],
        admission: Callable[[TierFacts], AdmissionPolicy] | None,
        prefetch: Sequence[Callable[[TierFacts], PrefetchPolicy]],
    ) -> None:
        self._state = state
        arena = self._view(None)
        views = [self._view(low) for low in state.lowers]
        evictions = [tier0(arena)]
        evictions += [spec.eviction(view) for spec, view in zip(lower, views, strict=True)]
        self.admission = admission(arena) if admission else None
        for low, view in zip(state.lowers, views, strict=True):
            low.admission = low.spec.admission(view) if low.spec.admission else None
        admissions = [self.admission, *(low.admission for low in state.lowers)]
        state.residency.policies = evictions
        state.residency.hooks.views = [arena, *views]
        state.residency.hooks.end_of = state.residency.end
        self._policies: list[EvictionPolicy | AdmissionPolicy] = [*evictions]
        self._policies += filter(None, admissions)
        self._prefetch = [make(arena) for make in prefetch] if state.lowers else []
        self._spared = Spared(state.residency, 1 + len(state.lowers))
        self._agenda = agenda

    def arrived(self, request: Request) -> list[Move]:
        """Tell of a new request; return what is to come up now."""
        self._spared.arrive(request)
        for policy in self._policies:
            policy.arrived(request.facts)
        now: list[Move] = []
        for prefetch in self._prefetch:
            for move in prefetch.arrived(request.facts):
                if move.up and move.at_s <= self._state.clock():
                    now.append(move)
                else:
                    self._agenda.add((move,))
        return now

    def started(self, request: Request) -> None:
        """Tell, once, that a request was scheduled."""
        if request.started:
            return
        request.started = True
        self._spared.start(request)
        for policy in (*self._policies, *self._prefetch):
            policy.started(request.facts)

    def accessed(self, request: Request, keys: Sequence[BlockKey]) -> None:
        """Tell prefetch policies of a hit."""
        for policy in self._prefetch:
            self._agenda.add(policy.accessed(request.facts, keys))

    def departed(self, request: Request) -> None:
        """Tell that a request is over."""
        request.started = True
        self._spared.start(request)
        for policy in self._policies:
            policy.departed(request.facts)
        for prefetch in self._prefetch:
            self._agenda.add(prefetch.departed(request.facts))

    def _view(self, lower: LowerTier | None) -> TierView:
        state = self._state
        return TierView(
            TIER0 if lower is None else lower.tier,
            residency=state.residency,
            groups=state.groups,
            costs=state.costs,
            clock=state.clock,
            capacity=None if lower is None else lower.spec.capacity,
            read=None if lower is None else lower.cost,
        )
