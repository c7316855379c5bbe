"""The brain's face: which chunk is where, who may use it, what moves next.

It may forget; it never lies: a chunk is readable only where every rank has it, and a slot is reused
only when no rank can still read or write it.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from kvtier.brain.audit import audit
from kvtier.brain.copies import Copies
from kvtier.brain.cost import Costs
from kvtier.brain.counters import Counters
from kvtier.brain.demotion import Demotion, worst_case
from kvtier.brain.groups import Groups
from kvtier.brain.hooks import Hooks
from kvtier.brain.index import IN_TIER0, MAX_LOWER
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operation, Operations
from kvtier.brain.plans import CacheEvent, LoadPlan, ReadPlan, StorePlan, TierSpec
from kvtier.brain.policies import Policies
from kvtier.brain.prefetch import Agenda, Prefetch
from kvtier.brain.promotion import Promotion
from kvtier.brain.requests import Request, Roster
from kvtier.brain.residency import Residency
from kvtier.brain.scoring import Scoring
from kvtier.brain.slots import Slots
from kvtier.brain.state import State
from kvtier.brain.stats import CacheStats, take_stats
from kvtier.brain.upkeep import Upkeep
from kvtier.facts import RequestFacts, RequestHints, TierFacts
from kvtier.hook import HookKind, HookSet
from kvtier.policy import AdmissionPolicy, EvictionPolicy, PrefetchPolicy
from kvtier.types import (
    NO_SLOT,
    TIER0,
    BlockKey,
    GroupSpec,
    OpKind,
    OpResult,
    ScanBatch,
    TierOp,
)

_NO_HINTS = RequestHints()
_NO_HOOKS = HookSet()


class TieredCache:
    """Decides for every rank at once. Called from one thread; no call waits or does I/O.

    Unknown requests, plans and operations are ignored: the engine may speak of what is long over.
    """

    def __init__(  # noqa: PLR0913 - everything it depends on comes in here, by name
        self,
        *,
        groups: Sequence[GroupSpec],
        ranks: int,
        tier0: Callable[[TierFacts], EvictionPolicy],
        lower: Sequence[TierSpec],
        admission: Callable[[TierFacts], AdmissionPolicy] | None = None,
        prefetch: Sequence[Callable[[TierFacts], PrefetchPolicy]] = (),
        hooks: HookSet = _NO_HOOKS,
        clock: Callable[[], float] = time.monotonic,
        low_watermark: float = 0.05,
        read_share: float = 0.5,
        costs: Costs | None = None,
    ) -> None:
        assert len(lower) <= MAX_LOWER
        names = ["dram", *(tier.name for tier in lower)]
        residency = Residency(names, Hooks(hooks, names))
        operations = Operations(ranks, clock)
        state = self._state = State(
            groups=Groups(groups),
            residency=residency,
            operations=operations,
            lowers=tuple(
                LowerTier(i, tier, residency, operations, clock) for i, tier in enumerate(lower, 1)
            ),
            roster=Roster(),
            costs=costs or Costs(clock),
            counters=Counters(),
            clock=clock,
        )
        largest = max(worst_case(group.nbytes) for group in groups)
        self._upkeeps = [
            Upkeep(low, residency, operations, ranks=ranks, largest=largest, clock=clock)
            for low in state.lowers
        ]
        self._agenda = Agenda(clock)
        self._policies = Policies(state, self._agenda, tier0, lower, admission, prefetch)
        self._scoring = Scoring(residency, operations, state.lowers, state.groups, clock)
        self._demotion = Demotion(state, low_watermark=low_watermark)
        self._promotion = Promotion(state, self._demotion, read_share=read_share)
        self._prefetch = Prefetch(state, self._agenda, self._promotion, self._demotion)
        self._copies = Copies(
            state, self._demotion, self._promotion, self._scoring, self._policies.admission
        )
        self._residency = residency
        self._counters = state.counters
        self._requests = state.roster.requests
        self._masks = state.roster.masks
        self._opened = False
        self._next_manifest: str | None = None  # of a reset before `open`

    def open(self, slots: int, manifest: str) -> None:
        """Start to serve with so many slots; orders the start of every lower tier."""
        assert not self._opened
        self._opened = True
        self._residency.slots = Slots(slots)
        self._demotion.open()
        for upkeep in self._upkeeps:
            upkeep.open(manifest)
        if self._next_manifest is not None:
            self._end_epoch(self._next_manifest)

    def reset(self, manifest: str, stale: Collection[str] | None = None) -> None:
        """Forget every chunk and begin a new epoch under `manifest`.

        `stale` are the requests whose KV is of the old epoch: they store nothing until they are
        preempted. Those that stored or loaded are always among them; None means all.
        """
        self._counters.resets += 1
        for request in self._requests.values():
            request.held.clear()
            request.given = False
            request.reading = None
            request.counted = request.below = 0
            if not request.refused:
                self._state.roster.unsettle(request)
            if stale is None or request.used or request.name in stale:
                request.stale = True
        if self._opened:
            self._end_epoch(manifest)
        else:
            self._next_manifest = manifest

    def arrive(
        self,
        request: str,
        groups: Sequence[Sequence[BlockKey]],
        *,
        persist: bool = True,
        hints: RequestHints = _NO_HINTS,
    ) -> None:
        """Learn a request's keys: per group its whole prefix, from chunk 0.

        Without `persist` what it stores never leaves tier 0.
        """
        self.depart(request)
        known = Request(request, persist, [list(keys) for keys in groups])
        keys_of = self._state.groups.keys(known.groups)
        known.facts = RequestFacts(request, keys_of, self._state.clock(), hints)
        self._requests[request] = known
        for keys in known.groups:
            known.places.update(zip(keys, range(len(keys)), strict=True))
        self._promotion.link(known)
        for move in self._policies.arrived(known):
            self._prefetch.ahead(known, move.keys)

    def extend(self, request: str, group: int, keys: Sequence[BlockKey]) -> None:
        """Add the chunks that decoding made to one of the request's groups, by its position."""
        known = self._requests.get(request)
        if known is not None:
            start = len(known.groups[group])
            known.groups[group].extend(keys)
            known.places.update(zip(keys, range(start, start + len(keys)), strict=True))

    def preempted(self, request: str) -> None:
        """Note that a request starts again from nothing: its KV will be of this epoch."""
        known = self._requests.get(request)
        if known is not None:
            known.stale = known.used = False
            if not known.refused and known.reading is None:
                self._state.roster.unsettle(known)

    def cancel(self, request: str) -> None:
        """Drop what a request waits for and holds."""
        known = self._requests.get(request)
        if known is not None:
            self._promotion.abandon(known)
            self._hold(known, [])

    def depart(self, request: str) -> None:
        """Forget a request; its copies under way keep their own pins."""
        self.cancel(request)
        known = self._requests.get(request)
        if known is not None:
            self._state.roster.drop(request)
            self._policies.departed(known)

    def started(self, request: str) -> None:
        """Note that a request was scheduled, where neither its load nor its store says so."""
        known = self._requests.get(request)
        if known is not None:
            self._policies.started(known)

    def lookup(self, request: str, key: BlockKey) -> bool:
        """Whether a request may count on a chunk: in any tier before its reads are settled, then in tier 0."""
        residency = self._residency
        row = residency.index.rows.get(key)
        self._counters.lookups += 1
        if row is not None:
            return residency.index.flags[row] & self._masks.get(request, residency.visible) != 0
        return False

    def plan_read(self, request: str, keys: Sequence[BlockKey]) -> ReadPlan | None:
        """Pin a hit, or order the reads that it needs; None: all of it is in tier 0 and pinned.

        A hit that costs more to read than to compute is refused until the request departs.
        """
        known = self._requests.get(request)
        if known is None:
            return ReadPlan(0)
        if known.reading is not None:
            return ReadPlan(len(known.reading.left))
        wanted = list(keys)
        if known.given and known.held == wanted:
            return None
        resident = self._residency.index.residents(wanted)
        self._hold(known, resident)
        if len(resident) == len(wanted):
            self._count_hits(known, wanted)
            known.given = True
            return None
        if self._state.roster.settled(known):
            return ReadPlan(0)
        return self._promotion.plan(known, wanted)

    def ready(self, request: str) -> bool:
        """Whether the request waits for no read any more; past its deadline it does not."""
        known = self._requests.get(request)
        if known is None or known.reading is None:
            return True
        if self._state.clock() < known.reading.deadline:
            return False
        self._promotion.expire(known)
        return True

    def plan_load(self, request: str, keys: Sequence[BlockKey]) -> LoadPlan:
        """Give the slots of a hit to copy to the device; the plan takes over the request's pins."""
        plan = self._copies.load(keys)
        known = self._requests.get(request)
        if known is not None:
            known.used = True
            self._policies.started(known)
            self._hold(known, [])
        return plan

    def plan_store(self, request: str, keys: Sequence[BlockKey]) -> StorePlan:
        """Give slots to as many of `keys` as fit, in order; those already here are touched.

        What is refused for lack of room only is in `no_room`; what else is not taken is not wanted.
        """
        known = self._requests.get(request)
        if known is None:
            return StorePlan(0, (), (), ())
        self._policies.started(known)
        if known.stale:
            return StorePlan(0, (), (), ())
        known.used = True
        return self._copies.store(known, keys)

    def finish(self, plan_id: int, failed: Collection[BlockKey] = ()) -> None:
        """End a plan: every rank has made its copies, but for the keys that failed somewhere."""
        self._copies.finish(plan_id, failed)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Learn how fast the engine computes."""
        self._state.costs.prefill.add(tokens, seconds)

    def transferred(self, nbytes: int, seconds: float) -> None:
        """Learn how fast slots are copied to the device."""
        self._state.costs.load.add(nbytes, seconds)
        self._counters.loaded.add(nbytes, seconds)

    def drain(self) -> list[TierOp]:
        """Take the operations for every rank; call it once per step, it also does what is due."""
        for upkeep in self._upkeeps:
            upkeep.tick()
        self._demotion.tick()
        self._scoring.tick()
        self._prefetch.tick()
        self._refresh()
        return self._state.operations.drain()

    def complete(self, results: Iterable[OpResult]) -> None:
        """Take the ranks' answers; an operation ends with the last one and is OK only if all are."""
        landed: list[BlockKey] = []
        for result in results:
            operation = self._state.operations.answer(result)
            if operation is not None:
                self._ended(operation, landed)
        if landed:
            self._residency.arrived(landed)
        self._refresh()

    def scanned(self, batch: ScanBatch) -> None:
        """Take a list of what one rank found at start."""
        self._upkeeps[batch.tier - 1].scanned(batch)

    def room(self) -> bool:
        """Whether a store could take a slot now."""
        return self._residency.slots.free > 0 or self._demotion.could_free()

    def awake(self) -> bool:
        """Whether the engine must step on: something moved a moment ago, or waits for `drain` only."""
        return (
            self._state.operations.awake()
            or any(upkeep.scanning for upkeep in self._upkeeps)
            or self._demotion.due
        )

    def events(self) -> list[CacheEvent]:
        """Take what became readable and what left, per tier, since the last call."""
        return self._residency.events()

    def stats(self) -> CacheStats:
        """Count everything."""
        return take_stats(self._state, len(self._promotion.fills))

    def check(self) -> None:
        """Assert every invariant, in a pass over everything.

        Raises:
            AssertionError: names the broken one.
        """
        audit(self._state, self._promotion, self._copies)

    def _end_epoch(self, manifest: str) -> None:
        old, unsent = self._state.operations.end_epoch()
        for operation in unsent:
            if operation.op.slot != NO_SLOT:
                self._residency.slots.done(operation.op.slot)
        for operation in old:
            if operation.op.slot != NO_SLOT:
                self._state.operations.cancel(operation)
        self._copies.clear()
        self._promotion.clear()
        self._state.ahead.clear()
        self._demotion.clear()
        self._agenda.clear()
        self._scoring.clear()
        self._residency.clear()
        for upkeep in self._upkeeps:
            upkeep.reset(manifest, sum(f.op.tier == upkeep.lower.tier for f in old))
        self._refresh()

    def _ended(self, operation: Operation, landed: list[BlockKey]) -> None:
        op = operation.op
        upkeep = self._upkeeps[op.tier - 1]
        key = BlockKey(op.key)
        if operation.epoch != self._state.operations.epoch:
            if op.slot != NO_SLOT:
                self._residency.slots.done(op.slot)
            upkeep.lingered()
            return
        match op.kind:
            case OpKind.READ:
                if self._promotion.ended(operation, upkeep.lower, key):
                    landed.append(key)
            case OpKind.WRITE:
                self._demotion.wrote(operation, upkeep.lower, key)
            case OpKind.REMOVE:
                upkeep.lower.removed(operation, key)
            case OpKind.SCORE:
                self._scoring.ended(operation, key)
            case _:
                upkeep.ended(operation)

    def _hold(self, known: Request, keys: list[BlockKey]) -> None:
        """Pin `keys` instead of what the request held before."""
        self._residency.rescue(keys)
        self._residency.pin(keys)
        self._residency.unpin(known.held)
        known.held = keys
        known.given = False

    def _count_hits(self, known: Request, keys: Sequence[BlockKey]) -> None:
        self._residency.touch(known, keys)
        self._policies.accessed(known, keys)
        self._state.ahead.used(keys)
        fresh = keys[known.counted :]
        known.counted = max(known.counted, len(keys))
        self._residency.hooks.tell(HookKind.HIT, TIER0, fresh)
        self._counters.hits += max(0, len(fresh) - known.below)
        known.below = 0
        self._demotion.reused(self._residency.hit(fresh))

    def _refresh(self) -> None:
        visible = IN_TIER0
        for lower in self._state.lowers:
            if lower.serving:
                visible |= 1 << lower.tier
        self._residency.visible = visible
