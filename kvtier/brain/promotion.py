"""The tiers below to tier 0: reads that requests wait for, and reads ahead."""

from collections import Counter
from collections.abc import Collection, Sequence

from kvtier.brain.budgets import Budgets
from kvtier.brain.demotion import Demotion
from kvtier.brain.groups import Place
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.misses import nowhere
from kvtier.brain.operations import Operation
from kvtier.brain.parts import shorter_parts, usable
from kvtier.brain.plans import ReadPlan
from kvtier.brain.reading import Fill, Reading
from kvtier.brain.requests import Request, Waiter
from kvtier.brain.state import State
from kvtier.brain.turn import Turns
from kvtier.brain.why import Why
from kvtier.brain.worth import Worth
from kvtier.hook import HookKind
from kvtier.types import NO_SLOT, BlockKey, OpKind, OpStatus, Priority

_NO_ROOM = (Why.READ_BUDGET, Why.NO_SLOT)
_AHEAD_LEAST = 8
_AHEAD_SHARE = 0.25  # of the slots; more would drive out what is in use when a queue builds up


class Promotion:
    """At most `read_share` of the slots are being filled from one tier at any time.

    A hit that does not fit at once comes in waves; `Turns` says who may wait for the next one. A hit ends for good where
    it could never fit, where a read fails, and where to wait costs more than to compute.
    """

    def __init__(
        self, state: State, demotion: Demotion, read_share: float, max_wait_s: float
    ) -> None:
        self.fills: dict[BlockKey, Fill] = {}
        self._state = state
        self._residency = state.residency
        self._lowers = state.lowers
        self._groups = state.groups
        self._demotion = demotion
        self._budgets = Budgets(state.lowers, state.residency, read_share)
        self._worth = Worth(state, max_wait_s)
        self.turns = Turns(state, self._budgets)

    def plan(self, request: Request, wanted: Sequence[BlockKey]) -> ReadPlan:
        """Order what of `wanted` is not in tier 0, in order, as far as it can come now.

        With several KV-cache groups the hit is cut for all of them at once: a part of one group is no hit.
        """
        self.link(request)
        wanted = self._cut(request, wanted)
        resident = self._residency.index.resident
        missing = list(dict.fromkeys(key for key in wanted if not resident(key)))
        reads = self._reads(missing)
        if self._worth.too_dear(request, wanted, missing, reads):
            return self._settle(request, Why.TOO_DEAR)
        now = self._state.clock()
        if request.began is None:
            request.begin(now, self._worth.patience(request, missing))
        if request.overdue(now):
            return self._settle(request, request.patience.why)
        why = self._make_room(request, missing)
        may_wait = why in _NO_ROOM and self._may_wait(request, reads)
        if may_wait and self._should_wait(request, missing):
            return self._await_turn(request, reads)
        more = why in _NO_ROOM and self.turns.may_hold(request) and len(missing) > 1
        part: Sequence[BlockKey] = missing
        if why and len(self._groups.specs) > 1:
            fits_later = more and len(reads) <= self._budgets.spare
            part = self._shorter(request, wanted, missing)
            grows = bool(part) and self._groups.group(part[0]).window_chunks is None
            if fits_later and not grows:
                part = missing  # its windows come with the last wave
            if may_wait and not part:
                return self._await_turn(request, reads, whole=True)
            more = more and (grows or fits_later)
        return self._order(request, part, why, more=more)

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
        return nowhere(self._state, prefix.keys[i]) if source is Why.ABSENT else source

    def link(self, request: Request) -> None:
        """Give what a scan found of a request's prefix its place."""
        if self._residency.index.unlinked:
            for position, keys in enumerate(request.groups):
                self._residency.link(keys, self._groups.placing(keys, position))
            tails = list(request.tails)
            self._residency.link(tails, lambda i: self._groups.tail(request, tails[i]))

    def read_ahead(self, request: Request, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """Read what a policy wants of a request that arrived, if it can be used: a window group's window only.

        Returns what lacked room.
        """
        may = usable(self._residency.index, self._groups, request)
        wanted = [key for key in keys if key in may]
        missing = [key for key in wanted if not self._residency.index.resident(key)]
        if missing and not self._worth.too_dear(request, wanted, missing, self._reads(missing)):
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
        """End the wait of a request that waited too long: it goes on with what it has."""
        request, why = reading.request, Why.LATE
        if reading.silent:
            for lower in dict.fromkeys(reading.left.values()):
                lower.breaker.failed(OpKind.READ)
        else:
            why = request.patience.why
        self.abandon(request)
        self._settle(request, why)

    def abandon(self, request: Request) -> None:
        """Stop to wait; reads that nobody else waits for are cancelled."""
        self.turns.release(request)
        if not isinstance(reading := request.abandon(), Reading):
            return
        for key in reading.left:
            fill = self.fills[key]
            fill.waiters.remove(reading)
            if not fill.waiters:
                self.cancel(fill)

    def hold(self, request: Request, key: BlockKey) -> None:
        """Pin a chunk that came up for a request."""
        request.hold_more(key)
        self._residency.pin((key,))

    def over(self, reading: Reading) -> None:
        """End the wait of a request whose last read has ended; it asks again where another wave follows."""
        request = reading.request
        if reading.failed:
            self._state.refuse_load(request, Why.FAILED)
        if reading.more and not reading.failed:
            request.give_up()
        else:
            self.end(request)

    def ended(self, operation: Operation, lower: LowerTier, key: BlockKey) -> bool:
        """Take the answer to READ; return whether the chunk is in its slot, to be made readable."""
        if self._resume(operation, lower, key):
            return False
        fill, ok = self.fills.pop(key), operation.ok
        lower.counters.hits += len(fill.waiters) if ok else 0
        self._residency.slots.done(operation.op.slot)
        lower.answered(operation, key)
        if ok:
            self._state.hooks.tell(HookKind.PROMOTE, lower.tier, (key,))
            if fill.ahead:
                nbytes = self._groups.group(key).nbytes
                self._state.ahead.landed(key, nbytes, awaited=bool(fill.waiters))
        else:
            self._residency.abandon(key)
        for waiter in fill.waiters:
            waiter.landed(key, ok=ok)
        return ok

    def relieve(self, wanted: Collection[BlockKey] = ()) -> None:
        """Cancel reads ahead, but for what is wanted: slots are needed."""
        for key, fill in self.fills.items():
            if not fill.waiters and key not in wanted:
                self.cancel(fill)

    def _order(
        self, request: Request, missing: Sequence[BlockKey], why: Why | None, *, more: bool
    ) -> ReadPlan:
        reading = Reading(request, self, self._state.clock, more=more)
        for key in missing:
            fill = self.wait_for(key, reading)
            if isinstance(fill, Why):
                why = fill
                break
            reading.expect(key, fill.lower)
        if not reading.left:
            if why in _NO_ROOM and request.impatient(self._state.clock()):
                why = Why.WAITING_FOR_ROOM
            return self._settle(request, why or Why.VANISHED)
        (self.turns.hold if more else self.turns.release)(request)
        if why and not more:
            self._state.refuse_load(request, why)
        request.await_reads(reading, self._state.clock())
        return ReadPlan(len(reading.left), tuple(reading.left))

    def _settle(self, request: Request, why: Why) -> ReadPlan:
        """Let a request do without reads."""
        self._state.refuse_load(request, why)
        self.end(request)
        return ReadPlan(0)

    def end(self, request: Request) -> None:
        """Let a request wait for no reads any more."""
        self.turns.release(request)
        request.settle()

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
        if priority is Priority.DEMAND and self._budgets.spare <= 0:
            return Why.NO_SLOT
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
        """Forget every read under way, and who holds slots for more."""
        self.fills.clear()
        self.turns.clear()

    def _cut(self, request: Request, wanted: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """Return what of a hit could ever be in tier 0 at once, beside stores."""
        most = self._budgets.largest_hit
        if len(wanted) <= most:
            return wanted
        self._state.refuse_load(request, Why.TOO_LONG)
        if len(self._groups.specs) == 1:
            return wanted[:most]
        index = self._residency.index
        parts = shorter_parts(index, self._groups, request, wanted, most, lambda _: True)
        return next(parts, [])

    def _reads(self, missing: Sequence[BlockKey]) -> list[tuple[BlockKey, LowerTier]]:
        """Return which reads would have to be ordered, and of which tier."""
        sources = ((key, self._source(key)) for key in missing if key not in self.fills)
        return [(key, lower) for key, lower in sources if isinstance(lower, LowerTier)]

    def _make_room(self, request: Request, missing: Sequence[BlockKey]) -> Why | None:
        """Make slots free for reads; return why not all that is missing is being read or can be now."""
        n, why = self._readable(missing)
        needed = n + self.turns.reserved(request) if n else 0
        lack = needed - self._residency.slots.free
        if lack > 0:
            self.relieve(set(missing))
            self._demotion.make_room(lack)
        return Why.NO_SLOT if needed > self._budgets.room else why

    def _may_wait(self, request: Request, reads: Sequence[tuple[BlockKey, LowerTier]]) -> bool:
        """Whether a request that lacks room could have some later: something moves, and for it too."""
        if not reads or not self.turns.moving or request.impatient(self._state.clock()):
            return False
        return not self.turns.silent(request, {lower for _, lower in reads})

    def _should_wait(self, request: Request, missing: Sequence[BlockKey]) -> bool:
        """Whether a request that lacks room may not begin yet, or only with too little."""
        if not self.turns.may_hold(request):
            return True
        fit = min(self._readable(missing)[0], self._budgets.room)
        return fit < min(len(missing), self.turns.least_wave)

    def _await_turn(
        self,
        request: Request,
        reads: Sequence[tuple[BlockKey, LowerTier]],
        *,
        whole: bool = False,
    ) -> ReadPlan:
        """Let a request wait for room, for its `whole` hit or a wave; only the one that may hold slots keeps what it has."""
        if self.turns.holder is not request:
            self._residency.unpin(request.hold([]))
        keys, room = [key for key, _ in reads], Counter(lower for _, lower in reads)
        request.await_turn(self.turns.wait(request, keys, room, whole=whole))
        return ReadPlan(len(keys))

    def _shorter(
        self, request: Request, wanted: Sequence[BlockKey], missing: Sequence[BlockKey]
    ) -> list[BlockKey]:
        """Return the reads of the longest part of a hit of several groups that has room now."""
        index = self._residency.index
        fit = min(self._readable(missing)[0], self._budgets.room)

        def absent(key: BlockKey) -> bool:
            return not index.resident(key)

        for part in shorter_parts(index, self._groups, request, wanted, fit, absent):
            reads = list(filter(absent, part))
            if self._make_room(request, reads) is None:
                return reads
        return []

    def _readable(self, missing: Sequence[BlockKey]) -> tuple[int, Why | None]:
        """Return how many slots the reads of `missing` take, up to one that cannot be read now, and why not."""
        # of each budget; the tiers that are not ours have one
        left: dict[LowerTier | None, int] = {}
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

    def cancel(self, fill: Fill) -> None:
        """Ask for a read to be dropped, once."""
        if not fill.cancelled:
            fill.cancelled = True
            self._state.operations.cancel(fill.operation)
