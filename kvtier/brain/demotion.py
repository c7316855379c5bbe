"""Tier 0 to the tiers below: who leaves, what is written first, what is written behind."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

from kvtier.brain.groups import Place
from kvtier.brain.index import HIT, IN_TIER0, VOLATILE
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operation
from kvtier.brain.space import worst_case
from kvtier.brain.state import State
from kvtier.brain.why import Why
from kvtier.hook import HookKind
from kvtier.types import TIER0, BlockKey, OpKind, OpStatus, WriteMode

_BATCH = 64  # victims per step in the background
_PATIENCE_S = 1.0  # after a search in the background that found too few
_ON_STORE = (WriteMode.THROUGH, WriteMode.IDLE)


class Demotion:
    """Evict from tier 0 and keep the lower tiers fed. Never waits: what no tier takes is dropped."""

    def __init__(self, state: State, *, low_watermark: float) -> None:
        self._state = state
        self._residency = state.residency
        self._lowers = state.lowers
        self._owned = tuple(lower for lower in state.lowers if lower.space)
        self._elsewhere = state.kept & ~IN_TIER0
        self._counters = state.counters
        self._low_watermark = low_watermark
        self._backlog: dict[int, deque[BlockKey]] = {}  # writes to come, per tier
        self._vain = -1  # the residency's news when the last search for room found too few
        self._search_at = 0.0  # the next one in the background

    def open(self) -> None:
        """Size what depends on the number of slots; the oldest write falls out of a full queue."""
        n = self._residency.slots.n
        self._backlog = {
            lower.tier: deque(maxlen=n) for lower in self._lowers if lower.spec.write in _ON_STORE
        }

    def clear(self) -> None:
        """Forget what was to be written."""
        for backlog in self._backlog.values():
            backlog.clear()

    def stored(self, keys: Sequence[BlockKey]) -> None:
        """Queue the writes of chunks that just came from the device."""
        for lower in self._lowers:
            if lower.tier in self._backlog and not lower.detached:
                self._backlog[lower.tier].extend(keys)

    def reused(self, keys: Iterable[BlockKey]) -> None:
        """Write chunks that were hit a second time into the tiers that wait for that."""
        for lower in self._lowers:
            if lower.spec.write is WriteMode.ON_REUSE:
                for key in keys:
                    self._write(lower, key)

    def make_room(self, n: int) -> None:
        """Free up to `n` slots. Victims that go down first are free at a later step only, and expected then."""
        if not any(lower.stalled for lower in self._owned):
            n -= self._residency.leaving
        if n <= 0 or self._vain == self._residency.news:
            return  # a search that finds nothing looks at every chunk
        victims = self._state.victims.choose(TIER0, n, self._residency.pins)
        self._vain = self._residency.news if len(victims) < n else -1
        if not self._lowers:
            self._drop(victims)
            return
        for key in victims:
            self._evict(key, needed=True)

    def sink(self, keys: Sequence[BlockKey]) -> bool:
        """Send chunks of one prefix down, tail first, up to one that is needed; what no tier takes stays.

        What a live request has in its prefix is needed. Returns whether none was.
        """
        residency = self._residency
        needed = self._needed(keys)
        for key in reversed(keys[needed:]):
            if key in residency.pins:
                return False
            if residency.index.resident(key) and not residency.is_leaving(key):
                self._sink(key)
        return not needed

    def _needed(self, keys: Sequence[BlockKey]) -> int:
        """Return how many chunks from the start of a prefix live requests have: whoever has one has those before it."""
        needed = 0
        for request in self._state.requests.values():
            places = request.places
            if needed == len(keys):
                break
            if keys[needed] in places:  # it has more than those before
                needed = bisect_left(keys, True, needed, key=lambda key: key not in places)
        return needed

    def _sink(self, key: BlockKey) -> None:
        flags = self._residency.index.flags_of(key)
        if any(lower.serving and flags >> lower.tier & 1 for lower in self._owned):
            self._expel(key)
        elif self._save(key, {}):
            self._residency.leave(key)

    def queued(self, lower: LowerTier) -> int:
        """Return how many writes of a tier wait to be ordered."""
        return len(self._backlog.get(lower.tier, ()))

    @property
    def pressed(self) -> bool:
        """Whether free slots are too scarce to read ahead: half of the watermark, the rest is for requests."""
        return self._residency.slots.free <= self._target() // 2

    @property
    def due(self) -> bool:
        """Whether the next `tick` would order a queued write.

        The engine is kept awake for it, so that also the chunks that were stored last are written.
        """
        return any(self._backlog.get(lower.tier) and self._takes(lower) for lower in self._lowers)

    def could_free(self) -> bool:
        """Whether a slot would be free at once if one were needed."""
        victims = self._residency.policies[TIER0].victims(1, self._residency.pins.__contains__)
        return any(not self._would_write(key) for key in victims)

    def tick(self) -> None:
        """Once per step: queued writes, then victims down to the low watermark of free slots."""
        for lower in self._lowers:
            if lower.tier in self._backlog and lower.writable:
                self._write_behind(lower)
        if any(lower.writable and not self._full(lower, idle=False) for lower in self._owned):
            self._to_watermark()

    def wrote(self, operation: Operation, lower: LowerTier, key: BlockKey) -> None:
        """Take the answer to WRITE; the slot of a chunk that was leaving is free with the last one."""
        residency = self._residency
        residency.slots.done(operation.op.slot)
        lower.wrote(operation, key)
        leaving = residency.is_leaving(key)
        if operation.ok:
            place = Place(BlockKey(operation.op.parent) or None, operation.op.end_token)
            if lower.beliefs:
                lower.beliefs.wrote(key, place, operation.nbytes, lower.ops)
            else:
                residency.record(lower.tier, [(key, place, operation.nbytes)])
            self._state.hooks.tell(HookKind.DEMOTE, lower.tier, (key,))
        elif leaving and lower.space:
            full = operation.status is OpStatus.NO_ROOM
            lower.counters.refused[Why.NO_ROOM if full else Why.FAILED] += 1
        if leaving and not any(self._writing(low, key) for low in self._owned):
            self._expel(key)
            self._counters.demotions += 1

    def _evict(self, key: BlockKey, *, needed: bool) -> None:
        """Send a victim down, or free it; one that is needed nowhere else is dropped only if `needed`."""
        refused: dict[int, Why] = {}
        if self._save(key, refused):
            self._residency.leave(key)
        elif needed or self._residency.index.flags_of(key) & self._elsewhere:
            self._expel(key)
        else:
            return
        for tier, why in refused.items():
            self._lowers[tier - 1].counters.refused[why] += 1

    def _drop(self, keys: Sequence[BlockKey]) -> None:
        """Evict where nothing is below: the same as `_expel` for each, in one pass."""
        if keys:
            self._counters.dropped += len(keys)
            self._counters.evictions += len(keys)
            self._residency.drop(keys)
            self._residency.evicted.add(keys)

    def _expel(self, key: BlockKey) -> None:
        if not self._residency.index.flags_of(key) & self._elsewhere:
            self._counters.dropped += 1
            self._residency.evicted.add((key,))
        self._counters.evictions += 1
        self._residency.expel(key)
        self._state.ahead.left(key)
        self._residency.policies[TIER0].evicted(key)

    def _save(self, key: BlockKey, refused: dict[int, Why]) -> bool:
        """Write a victim, or hurry its write, wherever it should be; return whether a write is under way.

        What a tier refuses goes into `refused`. Tiers whose room is not ours never hold a slot back.
        """
        saved = False
        for lower in self._owned:
            if self._writing(lower, key):
                lower.hasten(lower.ops[key])
                saved = True
            elif self._wanted(lower, key):
                if why := self._write(lower, key):
                    refused[lower.tier] = why
                else:
                    saved = True
        return saved

    def _would_write(self, key: BlockKey) -> bool:
        return any(
            self._writing(lower, key)
            or (self._wanted(lower, key) and lower.writable and not self._full(lower, idle=False))
            for lower in self._owned
        )

    def _wanted(self, lower: LowerTier, key: BlockKey) -> bool:
        """Whether a chunk that leaves tier 0 should be in `lower` and is not."""
        flags = self._residency.index.flags_of(key)
        if flags >> lower.tier & 1 or flags & VOLATILE:
            return False
        return lower.spec.write is not WriteMode.ON_REUSE or flags & HIT != 0

    def _writing(self, lower: LowerTier, key: BlockKey) -> bool:
        operation = lower.ops.get(key)
        return operation is not None and operation.op.kind is OpKind.WRITE

    def _write(self, lower: LowerTier, key: BlockKey, *, idle: bool = False) -> Why | None:
        """Order a write; return why not, if `lower` does not lack the chunk or cannot take it now."""
        index = self._residency.index
        row = index.rows.get(key)
        flags = 0 if row is None else index.flags[row]
        if row is None or not flags & IN_TIER0 or flags & VOLATILE or flags >> lower.tier & 1:
            return Why.ABSENT
        if self._full(lower, idle=idle):
            return Why.BUSY
        group = self._state.groups.group(key)
        nbytes = worst_case(group.nbytes)
        end = index.ends[row]
        if why := lower.refusal(key, end, nbytes):
            return why
        if not self._state.hooks.agree(HookKind.INSERT, lower.tier, key):
            return Why.VETOED
        lower.write(key, Place(index.parents[row], end), group.index, nbytes, idle)
        return None

    def _write_behind(self, lower: LowerTier) -> None:
        backlog = self._backlog[lower.tier]
        idle = lower.spec.write is WriteMode.IDLE
        while backlog and not lower.lacks_room and not self._full(lower, idle=idle):
            if self._write(lower, backlog[0], idle=idle) is Why.NO_ROOM:
                return  # it is being made
            backlog.popleft()

    def _takes(self, lower: LowerTier) -> bool:
        idle = lower.spec.write is WriteMode.IDLE
        return lower.writable and lower.could_take and not self._full(lower, idle=idle)

    def _full(self, lower: LowerTier, *, idle: bool) -> bool:
        if idle:
            return lower.idles >= lower.spec.max_idle_writes
        return lower.demotions >= lower.spec.max_writes

    def _target(self) -> int:
        return int(self._residency.slots.n * self._low_watermark)

    def _to_watermark(self) -> None:
        residency = self._residency
        n = min(self._target() - residency.slots.free - residency.leaving, _BATCH)
        if n <= 0 or self._state.clock() < self._search_at:
            return
        victims = self._state.victims.choose(TIER0, n, residency.pins, needed=False)
        if len(victims) < n:  # it has looked at every chunk that is spared
            self._search_at = self._state.clock() + _PATIENCE_S
        for key in victims:
            self._evict(key, needed=False)
