"""The tiers below to tier 0: reads that requests wait for, and reads ahead."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from kvtier.brain.budgets import Budgets
from kvtier.brain.demotion import Demotion
from kvtier.brain.groups import Place
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operation
from kvtier.brain.parts import shorter_reads, usable
from kvtier.brain.plans import ReadPlan
from kvtier.brain.requests import Request, Waiter
from kvtier.brain.state import State
from kvtier.brain.turn import Turn
from kvtier.brain.why import Why
from kvtier.hook import HookKind
from kvtier.types import NO_SLOT, BlockKey, OpKind, OpStatus, Priority

_NO_ROOM = (Why.READ_BUDGET, Why.NO_SLOT)

_AHEAD_LEAST = 8
_AHEAD_SHARE = 0.25  # of the slots; more would drive out what is in use when a queue builds up


class Reading:
    """The reads that one request waits for; it is told of each one's end."""

    def __init__(
        self, request: Request, promotion: "Promotion", clock: Callable[[], float]
    ) -> None:
        self.request = request
        self.started = self.deadline = clock()
        self.left: set[BlockKey] = set()
        self.nbytes: dict[int, int] = {}  # per tier, what was ordered
        self.failed = False  # some read did: its time says nothing about speed
        self._promotion = promotion
        self._clock = clock

    def expect(self, key: BlockKey, lower: LowerTier, nbytes: int) -> None:
        """Add a read to wait for."""
        self.left.add(key)
        self.nbytes[lower.tier] = self.nbytes.get(lower.tier, 0) + nbytes
        self.deadline = max(self.deadline, self.started + lower.spec.deadline_s)

    def landed(self, key: BlockKey, *, ok: bool) -> None:
        """Take the news of one key; the last one ends the wait."""
        self.left.remove(key)
        if ok:
            self._promotion.hold(self.request, key)
        else:
            self.failed = True
        if not self.left:
            self._promotion.over(self)

    def over(self) -> bool:
        """Whether its deadline has passed; then the request goes on without what is left."""
        if late := self._clock() >= self.deadline:
            self._promotion.expire(self)
        return late


@dataclass(slots=True)
class Fill:
    """One READ under way into a slot, and who is told that it landed."""

    lower: LowerTier
    operation: Operation
    waiters: list[Waiter] = field(default_factory=list)
    cancelled: bool = False
    ahead: bool = False  # ordered with nobody waiting


class Promotion:
    """At most `read_share` of the slots are being filled from one tier at any time; what does not fit is a miss.

    A request whose hit does not fit now may wait once for its turn.
    """

    def __init__(self, state: State, demotion: Demotion, *, read_share: float) -> None:
        self.fills: dict[BlockKey, Fill] = {}
        self._state = state
        self._residency = state.residency
        self._lowers = state.lowers
        self._groups = state.groups
        self._demotion = demotion
        self._budgets = Budgets(state.lowers, state.residency.slots, read_share)

    def plan(self, request: Request, wanted: Sequence[BlockKey]) -> ReadPlan:
        """Order what of `wanted` is not in tier 0, in order, up to the first that cannot come.

        With several KV-cache groups the hit is cut for all of them at once: a part of one group is no hit.
        """
        self.link(request)
        resident = self._residency.index.resident
        missing = list(dict.fromkeys(key for key in wanted if not resident(key)))
        if self._too_dear(request, wanted, missing):
            return self._settle(request, Why.TOO_DEAR)
        why = self._make_room(missing)
        if why in _NO_ROOM and (turn := self._turn(request, missing)):
            self._residency.unpin(request.await_turn(turn))
            return ReadPlan(len(turn.left))
        if why and len(self._groups.specs) > 1:
            self._state.refuse_load(request, why)
            missing = self._shorter(request, wanted, missing)
        reading = Reading(request, self, self._state.clock)
        for key in missing:
            fill = self.wait_for(key, reading)
            if isinstance(fill, Why):
                why = fill
                break
            reading.expect(key, fill.lower, self._nbytes(fill.lower, key))
        if not reading.left:
            return self._settle(request, why or Why.VANISHED)
        if len(reading.left) < len(missing) and why:
            self._state.refuse_load(request, why)
        request.await_reads(reading)
        return ReadPlan(len(reading.left), tuple(key for key in missing if key in reading.left))

    def wait_for(self, key: BlockKey, waiter: Waiter) -> Fill | Why:
        """Let somebody wait for a chunk that is coming up, or order it; return why it cannot come."""
        fill = self._join(key) or self._start(key, Priority.DEMAND)
        if isinstance(fill, Fill):
            fill.waiters.append(waiter)
        return fill

    def gap(self, request: Request, tokens: int) -> Why | None:
        """Say why the chunk that follows after so many tokens of the prefix is not a hit; None if it could be."""
        prefix = request.facts.prefix
        i = tokens // prefix.chunk_tokens
        if i >= len(prefix.keys) or self._residency.index.resident(prefix.keys[i]):
            return None
        source = self._source(prefix.keys[i])
        if isinstance(source, LowerTier):
            return None
        opening = not self._residency.slots.n or any(lower.opening for lower in self._lowers)
        return Why.OPENING if source is Why.ABSENT and opening else source

    def link(self, request: Request) -> None:
        """Give what a scan found of a request's prefix its place."""
        if self._residency.index.unlinked:
            for position, keys in enumerate(request.groups):
                self._residency.link(keys, self._groups.placing(keys, position))

    def read_ahead(self, request: Request, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """Read what a policy wants of a request that arrived, if it can be used: a window group's window only.

        Returns what lacked room.
        """
        may = usable(self._residency.index, self._groups, request)
        wanted = [key for key in keys if key in may]
        missing = [key for key in wanted if not self._residency.index.resident(key)]
        if missing and not self._too_dear(request, wanted, missing):
            return self.bring_up(missing)
        return ()

    def bring_up(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """Read ahead, into free slots only, up to the first key that is nowhere; return what lacked room."""
        for i, key in enumerate(keys):
            if self.is_coming(key):
                continue
            if isinstance(self._source(key), Why):
                break
            fill = self._start(key, Priority.PREFETCH) if self._may_read_ahead() else Why.NO_SLOT
            if isinstance(fill, Why):
                return keys[i:]
            fill.ahead = True
            self._state.counters.prefetches += 1
        return ()

    def is_coming(self, key: BlockKey) -> bool:
        """Whether a chunk is in tier 0, or being read into it."""
        return key in self.fills or self._residency.index.resident(key)

    def _may_read_ahead(self) -> bool:
        """Whether slots are free, and what was read ahead and not yet used holds no more than its share."""
        ahead = len(self._state.ahead) + sum(lower.reads.ahead for lower in self._lowers)
        share = max(_AHEAD_LEAST, self._residency.slots.n * _AHEAD_SHARE)
        return not self._demotion.pressed and ahead < share

    def expire(self, reading: Reading) -> None:
        """End the wait of a request whose deadline passed: it goes on with what it has."""
        late = {self.fills[key].lower.tier for key in reading.left}
        for lower in self._lowers:
            if lower.tier in late:
                lower.breaker.failed(OpKind.READ)
        self._learn(reading)
        self.abandon(reading.request)
        self._settle(reading.request, Why.LATE)

    def abandon(self, request: Request) -> None:
        """Stop to wait; reads that nobody else waits for are cancelled."""
        if not isinstance(reading := request.give_up(), Reading):
            return
        for key in reading.left:
            fill = self.fills[key]
            fill.waiters.remove(reading)
            if not fill.waiters:
                self._cancel(fill)

    def hold(self, request: Request, key: BlockKey) -> None:
        """Pin a chunk that came up for a request."""
        request.hold_more(key)
        self._residency.pin((key,))

    def over(self, reading: Reading) -> None:
        """End the wait of a request whose last read has ended."""
        if reading.failed:
            self._state.refuse_load(reading.request, Why.FAILED)
        self._learn(reading)
        reading.request.settle()

    def ended(self, operation: Operation, lower: LowerTier, key: BlockKey) -> bool:
        """Take the answer to READ; return whether the chunk is in its slot, to be made readable."""
        if self._resume(operation, lower, key):
            return False
        fill = self.fills.pop(key)
        lower.counters.hits += len(fill.waiters) if operation.ok else 0
        self._residency.slots.done(operation.op.slot)
        lower.answered(operation, key)
        if operation.ok:
            self._state.hooks.tell(HookKind.PROMOTE, lower.tier, (key,))
            if fill.ahead:
                nbytes = self._groups.group(key).nbytes
                self._state.ahead.landed(key, nbytes, awaited=bool(fill.waiters))
        else:
            self._residency.abandon(key)
        for waiter in fill.waiters:
            waiter.landed(key, ok=operation.ok)
        return operation.ok

    def relieve(self, wanted: Collection[BlockKey] = ()) -> None:
        """Cancel reads ahead, but for what is wanted: slots are needed."""
        for key, fill in self.fills.items():
            if not fill.waiters and key not in wanted:
                self._cancel(fill)

    def _settle(self, request: Request, why: Why) -> ReadPlan:
        """Let a request do without reads."""
        self._state.refuse_load(request, why)
        request.settle()
        return ReadPlan(0)

    def _learn(self, reading: Reading) -> None:
        if reading.failed:
            return
        seconds = self._state.clock() - reading.started
        for lower in self._lowers:
            if nbytes := reading.nbytes.get(lower.tier):
                lower.cost.arrived(nbytes, seconds)

    def _join(self, key: BlockKey) -> Fill | Why | None:
        fill = self.fills.get(key)
        if fill is None:
            return None
        if fill.lower.reads.is_late(key):
            return Why.LATE  # whoever waited for it does no more
        # a read that is being cancelled too: the cancel may come too late
        self._state.operations.hasten(fill.operation, Priority.DEMAND)
        fill.lower.reads.demand(key)
        return fill

    def _resume(self, operation: Operation, lower: LowerTier, key: BlockKey) -> bool:
        """Order a read anew, into its slot, that was cancelled before somebody came to wait for it."""
        fill = self.fills[key]
        gone = operation.status is OpStatus.CANCELLED and fill.cancelled
        if not (gone and fill.waiters and lower.serving):
            return False
        lower.answered(operation, key)
        op = operation.op
        fill.operation = lower.read(key, self._place(key), op.slot, op.group, Priority.DEMAND)
        fill.cancelled = False
        return True

    def _start(self, key: BlockKey, priority: Priority) -> Fill | Why:
        """Order a READ of a chunk from the first tier that has it; return why none can be read now."""
        lower = self._source(key)
        if isinstance(lower, Why):
            return lower
        if self._budgets.left(lower, priority) <= 0:
            return Why.READ_BUDGET
        slot = self._residency.claim(key)
        if slot == NO_SLOT:
            return Why.NO_SLOT
        group = self._groups.group(key).index
        fill = Fill(lower, lower.read(key, self._place(key), slot, group, priority))
        self.fills[key] = fill
        return fill

    def _place(self, key: BlockKey) -> Place:
        """Return where a chunk of a lower tier stands; a scanned one is linked when a request shows it."""
        index = self._residency.index
        row = index.rows[key]
        return Place(index.parents[row], index.ends[row])

    def _source(self, key: BlockKey) -> LowerTier | Why:
        """Return the first tier that a chunk can be read from, or why there is none."""
        index = self._residency.index
        row = index.rows.get(key)
        if row is None:
            return Why.ABSENT
        if index.slots[row] != NO_SLOT:
            return Why.BUSY  # it is in tier 0, or on its way there
        why = Why.ABSENT
        for lower in self._lowers:
            if index.flags[row] >> lower.tier & 1:
                if (refusal := lower.why_not) is None:
                    return lower
                why = refusal
        return why

    def clear(self) -> None:
        """Forget every read under way."""
        self.fills.clear()

    def _make_room(self, missing: Sequence[BlockKey]) -> Why | None:
        """Make slots free for reads; return why not all that is missing is being read or can be now."""
        slots = self._residency.slots
        n, why = self._readable(missing)
        if n > slots.free:
            self.relieve(set(missing))
            self._demotion.make_room(n - slots.free)
        return Why.NO_SLOT if n > slots.free else why

    def _turn(self, request: Request, missing: Sequence[BlockKey]) -> Turn | None:
        """Return the turn that a request waits for, if it has not waited before and there is none now."""
        keys = [key for key in missing if key not in self.fills]
        reads = Counter(low for low in map(self._source, keys) if isinstance(low, LowerTier))
        if request.waited or not reads:
            return None
        turn = Turn(self._state, self._budgets, request, keys, reads)
        return None if turn.over() else turn

    def _shorter(
        self, request: Request, wanted: Sequence[BlockKey], missing: Sequence[BlockKey]
    ) -> list[BlockKey]:
        """Return the reads of the longest part of a hit of several groups that has room now."""
        fit = min(self._readable(missing)[0], self._residency.slots.free)
        parts = shorter_reads(self._residency.index, self._groups, request, wanted, fit)
        return next((reads for reads in parts if self._make_room(reads) is None), [])

    def _readable(self, missing: Sequence[BlockKey]) -> tuple[int, Why | None]:
        """Return how many slots the reads of `missing` take, up to one that cannot be read now, and why not."""
        left: dict[
            LowerTier | None, int
        ] = {}  # of each budget; the tiers that are not ours have one
        n = 0
        for key in missing:
            if fill := self.fills.get(key):
                if fill.lower.reads.is_late(key):
                    return n, Why.LATE
                continue
            lower = self._source(key)
            if isinstance(lower, Why):
                return n, lower
            budget = lower if lower.space else None
            if budget not in left:
                left[budget] = self._budgets.left(lower, Priority.DEMAND)
            if left[budget] <= 0:
                return n, Why.READ_BUDGET
            left[budget] -= 1
            n += 1
        return n, None

    def _cancel(self, fill: Fill) -> None:
        if not fill.cancelled:
            fill.cancelled = True
            self._state.operations.cancel(fill.operation)

    def _nbytes(self, lower: LowerTier, key: BlockKey) -> int:
        index = self._residency.index
        return index.sizes[lower.tier - 1][index.rows[key]]

    def _too_dear(
        self, request: Request, wanted: Sequence[BlockKey], missing: Sequence[BlockKey]
    ) -> bool:
        """Whether to compute from the first missing chunk on is cheaper than to read and load."""
        if not self._state.costs.known:
            return False
        spans = self._groups.spans(request, wanted)
        starts = [spans[key][0] for key in missing if key in spans]
        if not starts:
            return False
        first = min(starts)
        tokens = max(end for _, end in spans.values()) - first
        per_tier: dict[int, int] = {}
        for key in missing:
            lower = self._source(key)
            if isinstance(lower, LowerTier) and key not in self.fills:
                nbytes = self._nbytes(lower, key)
                per_tier[lower.tier] = per_tier.get(lower.tier, 0) + nbytes
        read_s = sum(
            lower.cost.estimate(per_tier[lower.tier])
            for lower in self._lowers
            if lower.tier in per_tier
        )
        loaded = [key for key, (_, end) in spans.items() if end > first]
        nbytes = sum(self._groups.group(key).nbytes for key in loaded)
        return self._state.costs.dearer(read_s, nbytes, tokens)
