"""The brain's face: which chunk is where, who may use it, what moves next.

It may forget; it never lies: a chunk is readable only where every rank has it, and a slot is reused
only when no rank can still read or write it.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from kvtier.brain.asking import Asking
from kvtier.brain.audit import audit
from kvtier.brain.copies import Copies
from kvtier.brain.cost import Costs
from kvtier.brain.demotion import Demotion
from kvtier.brain.holds import Holds
from kvtier.brain.index import IN_TIER0
from kvtier.brain.notifier import Notifier
from kvtier.brain.operations import Operation
from kvtier.brain.overlap import Overlap
from kvtier.brain.plans import CacheEvent, LoadPlan, ReadPlan, StorePlan, TierSpec
from kvtier.brain.prefetch import Agenda, Prefetch
from kvtier.brain.promotion import Promotion
from kvtier.brain.requests import Request
from kvtier.brain.scoring import Scoring
from kvtier.brain.snapshot import snapshot
from kvtier.brain.state import make_state
from kvtier.brain.stats import CacheStats
from kvtier.brain.upkeep import Upkeep
from kvtier.brain.view import CacheView
from kvtier.brain.why import Why
from kvtier.facts import RequestFacts, RequestHints, TierFacts
from kvtier.hook import HookSet
from kvtier.policy import AdmissionPolicy, EvictionPolicy, PrefetchPolicy
from kvtier.types import (
    NO_SLOT,
    BlockKey,
    GroupSpec,
    OpKind,
    OpResult,
    ScanBatch,
    TierOp,
)

_TIDY = 4096  # entries that a reset left and a step frees: less than a millisecond
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
        max_wait_s: float = 30.0,
        costs: Costs | None = None,
        events: bool = True,
        arena: str = "dram",
        overlap: bool = False,
    ) -> None:
        """With `overlap` a hit may be given, of one KV-cache group, whose last chunks land while others are copied."""
        state = self._state = make_state(
            groups=groups,
            ranks=ranks,
            tier0=tier0,
            lower=lower,
            admission=admission,
            prefetch=prefetch,
            hooks=hooks,
            clock=clock,
            costs=costs or Costs(clock),
            events=events,
            arena=arena,
        )
        self._upkeeps = [Upkeep(low, state) for low in state.lowers]
        self._agenda = Agenda(clock)
        self._notifier = Notifier(state.policies, state.victims, self._agenda, clock)
        self._scoring = Scoring(state)
        self._demotion = Demotion(state, low_watermark=low_watermark)
        self._holds = Holds(state, self._notifier, self._demotion)
        self._promotion = Promotion(state, self._demotion, read_share, max_wait_s)
        self._prefetch = Prefetch(state, self._agenda, self._promotion, self._demotion)
        self.asks = Asking(state)
        self._overlap = Overlap(state, self._promotion, enabled=overlap)
        self._copies = Copies(state, self._demotion, self._promotion, self._scoring, self._overlap)
        self._residency = state.residency
        self._index = state.residency.index
        self._counters = state.counters
        self._requests = state.requests
        self._visible = IN_TIER0  # the tiers that serve
        self._opened = False
        self._next_manifest: str | None = None  # of a reset before `open`

    def open(self, slots: int, manifest: str, *, shared: str | None = None) -> None:
        """Start to serve with so many slots; orders the start of every lower tier.

        `shared` is the manifest for tiers that other engines use too: None is the same one, and without any they are
        left alone.
        """
        assert not self._opened
        self._opened = True
        self._residency.slots.open(slots)
        self._demotion.open()
        for upkeep in self._upkeeps:
            upkeep.open(manifest, manifest if shared is None else shared)
        if self._next_manifest is not None:
            self._end_epoch(self._next_manifest)

    def reset(self, manifest: str, stale: Collection[str] | None = None) -> None:
        """Forget every chunk and begin a new epoch under `manifest`.

        `stale` are the requests whose KV is of the old epoch: they store nothing until they are
        preempted. Those that stored or loaded are always among them; None means all.
        """
        self._counters.resets += 1
        for request in self._requests.values():
            request.reset(stale=stale is None or request.name in stale)
        if self._opened:
            self._end_epoch(manifest)
        else:
            self._next_manifest = manifest

    def leave_shared(self) -> None:
        """Leave tiers that other engines use too to them: nothing is asked, read or written there any more."""
        for upkeep in self._upkeeps:
            upkeep.leave()

    def weights_changed(self) -> None:
        """Note that the next reset is because weights were changed in place."""
        self._counters.weight_changes += 1

    def arrive(
        self,
        request: str,
        groups: Sequence[Sequence[BlockKey]],
        *,
        persist: bool = True,
        reads: bool = True,
        hints: RequestHints = _NO_HINTS,
    ) -> None:
        """Learn a request's keys: per group its whole prefix, from chunk 0.

        Without `persist` what it stores never leaves tier 0. Without `reads` nothing is read ahead for it: it will
        not ask.
        """
        self.depart(request)
        lists = [list(keys) for keys in groups]
        keys = self._state.groups.keys(lists)
        facts = RequestFacts(request, keys, self._state.clock(), hints)
        known = self._requests[request] = Request(request, persist, lists, facts, reads=reads)
        self._promotion.link(known)
        self.asks.arrived(known)
        for move in self._notifier.arrived(known):
            self._prefetch.ahead(known, move.keys)

    def extend(
        self, request: str, group: int, keys: Sequence[BlockKey], *, persist: bool = True
    ) -> None:
        """Add the chunks that decoding made to one group, by its position; without `persist` stores stay in tier 0 from now on."""
        known = self._requests.get(request)
        if known is not None:
            known.extend(group, keys, persist=persist)

    def end_inside(self, request: str, ends: Mapping[BlockKey, int]) -> None:
        """Add keys of a request that end inside a chunk, by the token: they are stored and read like chunks."""
        if (known := self._requests.get(request)) is not None:
            known.end_inside(ends)

    def preempted(self, request: str) -> None:
        """Note that a request starts again from nothing: its KV will be of this epoch."""
        known = self._requests.get(request)
        if known is not None:
            known.preempt()

    def cancel(self, request: str) -> None:
        """Drop what a request waits for and holds."""
        known = self._requests.get(request)
        if known is not None:
            self._promotion.abandon(known)
            self._holds.hold(known, [])

    def depart(self, request: str) -> None:
        """Forget a request; its copies under way keep their own pins."""
        self.cancel(request)
        known = self._requests.get(request)
        if known is not None:
            del self._requests[request]
            self._notifier.departed(known)

    def lookup(self, request: str, key: BlockKey) -> bool:
        """Whether a request may count on a chunk: in any tier before its reads are settled, then in tier 0."""
        self._counters.lookups += 1
        row = self._index.rows.get(key)
        if row is None:
            return False
        holders = self._index.flags[row] & self._visible
        if holders & IN_TIER0:
            return True
        known = self._requests.get(request)
        return holders != 0 and (known is None or holders & known.sees != 0)

    def refuse_load(self, request: str, why: Why) -> None:
        """Note that a request's hit ends for a reason that only the caller knows."""
        if known := self._requests.get(request):
            self._state.refuse_load(known, why)

    def refuse_store(self, request: str, chunks: int, why: Why) -> None:
        """Note that a request was scheduled, and that the caller stores nothing of what it offers."""
        self._counters.store_refusals[why] += chunks
        if (known := self._requests.get(request)) is not None:
            self._notifier.started(known)

    def fell_short(self, request: str, tokens: int) -> Why | None:
        """Return why a request's hit ends after `tokens` tokens, counted once; None if it need not end there."""
        known = self._requests.get(request)
        if known is None:
            return None
        if known.why is None and (why := self._promotion.gap(known, tokens)):
            self._state.refuse_load(known, why)
        return known.why

    def plan_read(self, request: str, keys: Sequence[BlockKey]) -> ReadPlan | None:
        """Pin a hit, or order the reads that it needs; None: all of it is in tier 0 and pinned.

        A hit that costs more to read than to compute is refused until the request departs.
        """
        known = self._requests.get(request)
        if known is None:
            return ReadPlan(0)
        wanted = list(keys)
        if known.reading is not None:
            coming = len(known.reading.left)
            if not self._overlap.gives(known, wanted):
                return ReadPlan(coming)
            if not known.given:
                self._holds.give(known, wanted, coming)
            return None
        if known.given and known.held == wanted:
            return None
        resident = self._residency.index.residents(wanted)
        self._holds.hold(known, resident)
        if len(resident) == len(wanted):
            self._holds.give(known, wanted)
            return None
        if known.settled:
            return ReadPlan(0)
        return self._promotion.plan(known, wanted)

    def ready(self, request: str) -> bool:
        """Whether the request waits for no read any more, nor for room; past its deadline it does not.

        Nor for those that land in time for its copies.
        """
        known = self._requests.get(request)
        if known is None or known.reading is None or known.reading.over():
            return True
        return self._overlap.in_sight(known)

    def plan_load(self, request: str, keys: Sequence[BlockKey]) -> LoadPlan:
        """Give the slots of a hit to copy to the device; the plan takes over the request's pins."""
        known = self._requests.get(request)
        plan = self._copies.load(known, keys)
        if known is not None:
            known.use()
            self._notifier.started(known)
            self._holds.hold(known, [])
        return plan

    def plan_store(self, request: str, keys: Sequence[BlockKey]) -> StorePlan:
        """Give slots to as many of `keys` as fit, in order, and note the use of those that tier 0 holds already.

        A key in `no_room` lacked only a slot and may be offered again. A key in neither list of the plan is not
        wanted.
        """
        known = self._requests.get(request)
        if known is None:
            return StorePlan(0, (), (), ())
        self._notifier.started(known)
        if known.stale:
            self._counters.store_refusals[Why.STALE] += len(keys)
            return StorePlan(0, (), (), ())
        known.use()
        return self._copies.store(known, keys)

    def finish(self, plan_id: int, failed: Collection[BlockKey] = ()) -> None:
        """End a plan: every rank has made its copies, but for the keys that failed somewhere."""
        self._copies.finish(plan_id, failed)

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Learn how fast the engine computes."""
        self._state.costs.prefill.add(tokens, seconds)

    def transferred(self, nbytes: int, seconds: float, stored: int = 0, took: float = 0) -> None:
        """Learn how fast slots are copied to the device, and note what was copied from it."""
        if seconds:
            self._state.costs.load.add(nbytes, seconds)
        self._state.arena.count_copies(nbytes, seconds, stored, took)

    def drain(self) -> list[TierOp]:
        """Take the operations for every rank; call it once per step, it also does what is due."""
        for upkeep in self._upkeeps:
            upkeep.tick()
        self._demotion.tick()
        self._promotion.turns.tick()
        self._scoring.tick()
        self._prefetch.tick()
        self.asks.tick()
        self._index.tidy(_TIDY)
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
            for lower in self._state.lowers:
                lower.learn()
        self._refresh()

    def scanned(self, batch: ScanBatch) -> None:
        """Take a list of what one rank found at start."""
        if space := self._state.lowers[batch.tier - 1].space:
            space.scanned(batch)

    def room(self) -> bool:
        """Whether a store could take a slot now."""
        return self._residency.slots.free > 0 or self._demotion.could_free()

    def awake(self) -> bool:
        """Whether the engine must step on: something moved a moment ago, or waits for `drain` only."""
        if self._state.operations.awake() or self._demotion.due or self.asks.waiting:
            return True
        return any(low.space and low.space.scanning for low in self._state.lowers)

    def events(self) -> list[CacheEvent]:
        """Take what became readable and what left, per tier, since the last call; nothing if made without `events`."""
        return self._residency.events()

    @property
    def view(self) -> CacheView:
        """Look at everything."""
        return CacheView(self._state, self._demotion)

    def stats(self) -> CacheStats:
        """Count everything."""
        return snapshot(self._state, len(self._promotion.fills))

    def check(self) -> None:
        """Assert every invariant, in a pass over everything; the AssertionError names the broken one."""
        audit(self._state, self._promotion, self._copies, self.asks)

    def _end_epoch(self, manifest: str) -> None:
        old = self._state.end_epoch()
        self._promotion.clear()
        self.asks.clear()
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
            case OpKind.ASK:
                self.asks.ended(operation)
            case OpKind.SCORE:
                self._scoring.ended(operation, key)
            case _:
                upkeep.ended(operation)

    def _refresh(self) -> None:
        serving = (1 << lower.tier for lower in self._state.lowers if lower.serving)
        self._visible = IN_TIER0 | sum(serving)
