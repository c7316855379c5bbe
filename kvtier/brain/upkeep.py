"""Keeps one lower tier going: opens it, resets it, probes it, takes in what it holds, makes room in it."""

from collections.abc import Iterator
from itertools import islice

from kvtier.brain.index import TIERS
from kvtier.brain.lower_tier import LowerTier, Phase
from kvtier.brain.operations import Operation
from kvtier.brain.space import Space
from kvtier.brain.state import State
from kvtier.types import BlockKey, OpKind, OpStatus, Priority, TierOp

_SCAN_SLICE = (
    512  # records found at start, or lost, that are taken in per step: a millisecond or two
)
_RETRY_S = 1.0
_MAX_RETRY_S = 60.0
_LIST_S = 10.0  # until a list that does not move is asked for again; then twice as long
_MAX_LIST_S = 600.0
_WELL = (OpStatus.OK, OpStatus.MISSING)  # of a probe; MISSING: and nothing of before is there


class Upkeep:
    """The upkeep of a `LowerTier`: what time, room and the ranks' starts ask for, in `tick`."""

    def __init__(self, lower: LowerTier, state: State) -> None:
        self.lower = lower
        self._residency = state.residency
        self._victims = state.victims
        self._operations = state.operations
        self._clock = state.clock
        self._start = TierOp(0, OpKind.OPEN)  # what opens it: OPEN, after a reset RESET
        self._ghosts: Iterator[BlockKey] = iter(())  # records that were removed behind our back
        self._begun = False
        self._started = False
        self._lingering = 0  # operations of ended epochs under way
        self._retry_at = 0.0
        self._retry_s = _RETRY_S
        self._list_s = _LIST_S

    def open(self, manifest: str, shared: str) -> None:
        """Order its start, and expect the list of what it holds; one that others use too has a manifest of its own."""
        if self.lower.space or shared:
            self._begin(OpKind.OPEN, manifest if self.lower.space else shared)
        else:
            self._detach()

    def reset(self, manifest: str, lingering: int) -> None:
        """Order a fresh start: nothing is known any more, `lingering` old operations are under way.

        Used again only when they have ended: an old REMOVE must not meet a new record. A tier that others use too is
        left to them: this engine goes on without it.
        """
        self.lower.clear()
        self.lower.breaker.forget_probe()
        self._ghosts = iter(())
        self._lingering = lingering
        if self.lower.space:
            self._begin(OpKind.RESET, manifest)
        else:
            self._detach()

    def lingered(self) -> None:
        """Note the end of an operation of an ended epoch."""
        self._lingering -= 1
        self._open_if_ready()

    def ended(self, operation: Operation) -> None:
        """Take the answer to what this ordered."""
        match operation.op.kind:
            case OpKind.OPEN | OpKind.RESET:
                self._opened(operation)
            case OpKind.RECLAIM if self.lower.space:
                self.lower.space.reclaimed(operation.nbytes if operation.ok else None)
            case OpKind.PROBE:
                self.lower.breaker.probed(ok=operation.status in _WELL)
                if self.lower.space and operation.status is OpStatus.MISSING:
                    self._ghosts = iter(self._residency.held(self.lower.tier))
            case OpKind.ROOM if self.lower.space:
                self.lower.space.measured(operation.free if operation.ok else None)

    def tick(self) -> None:
        """Do what is due; called once per step."""
        lower = self.lower
        lower.watch()
        if lower.phase is Phase.CLOSED and self._begun and self._clock() >= self._retry_at:
            self._begin(self._start.kind, self._start.text)
        if lower.phase is Phase.OPEN and lower.space and lower.space.late(self._list_s):
            self._list_s = min(2 * self._list_s, _MAX_LIST_S)
            self._begin(self._start.kind, self._start.text)
        if lower.phase is Phase.OPEN and lower.breaker.due:
            lower.breaker.probing()
            self._order(TierOp(0, OpKind.PROBE, priority=Priority.WRITE))
        if lower.beliefs:
            lower.beliefs.tick(lower.ops)
        if lower.serving and lower.space:
            if found := lower.space.take_found(_SCAN_SLICE):
                self._residency.record(lower.tier, found)
            self._lay_ghosts(lower.space)
            for key in lower.space.take_doomed():
                lower.remove(key)
            if lower.space.ask():
                self._order(TierOp(0, OpKind.ROOM, nbytes=lower.space.room.largest))
            self._make_room(lower.space)

    def leave(self) -> None:
        """Leave the tier to others, if others use it too; what is under way is still answered."""
        if not self.lower.space:
            self._detach()

    def _detach(self) -> None:
        self.lower.phase, self.lower.detached = Phase.CLOSED, True
        self._begun = self._started = False

    def _opened(self, operation: Operation) -> None:
        """Take the answer to OPEN or RESET; a failure is ordered again later."""
        if operation.ok:
            self._started = True
            self._retry_s = _RETRY_S
            if self.lower.space:
                self.lower.space.found_foreign(operation.nbytes)
            self._open_if_ready()
        else:
            self.lower.phase = Phase.CLOSED
            self.lower.fail(self._start.kind, operation.status)
            self._retry_at = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, _MAX_RETRY_S)

    def _begin(self, kind: OpKind, manifest: str) -> None:
        self._start = TierOp(0, kind, text=manifest)
        self._begun = True
        self._started = False
        self.lower.phase = Phase.OPENING
        number = self._order(self._start)
        if kind is OpKind.OPEN and self.lower.space:
            self.lower.space.expect_list(number)

    def _order(self, op: TierOp) -> int:
        number = self._operations.number()
        self._operations.order(op._replace(op=number, tier=self.lower.tier))
        return number

    def _open_if_ready(self) -> None:
        if self._started and not self._lingering and not self.lower.detached:
            self.lower.phase = Phase.OPEN

    def _lay_ghosts(self, space: Space) -> None:
        """Forget records that a rank has lost as a whole; other ranks may have theirs still."""
        tier = self.lower.tier
        for key in islice(self._ghosts, _SCAN_SLICE):
            if self._residency.index.flags_of(key) >> tier & 1 and key not in self.lower.ops:
                space.doom(key, self._residency.erase(tier, key))

    def _make_room(self, space: Space) -> None:
        """Foreign bytes go before our own."""
        need = space.lacking()
        if need and space.reclaim(need):
            self._order(TierOp(0, OpKind.RECLAIM, priority=Priority.WRITE, nbytes=need))
        elif need and not space.waits:
            self._evict(space, need)

    def _evict(self, space: Space, need: int) -> None:
        tier = self.lower.tier
        enough = 1 + need * self._residency.chunks[tier] // max(1, space.used)  # of average size
        n = min(space.removals_left, enough)
        for key in self._victims.choose(tier, n, self.lower.ops):
            if need <= 0:
                return
            unread = not self._residency.was_read(tier, key)
            nbytes = self._residency.erase(tier, key)
            if unread:
                self.lower.counters.unread_bytes += nbytes * self.lower.keepers
            if not self._residency.index.flags_of(key) & TIERS:
                self._residency.evicted.add((key,))
            self._residency.policies[tier].evicted(key)
            self.lower.counters.evictions += 1
            space.evict(key, nbytes)
            self.lower.remove(key)
            need -= nbytes
