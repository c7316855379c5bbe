"""Who holds what: the index, the slots, the pins and the policies, kept in step with each other."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import ge

from kvtier.brain.ages import Ages
from kvtier.brain.evicted import Evicted
from kvtier.brain.groups import Place
from kvtier.brain.index import (
    HIT,
    IN_TIER0,
    LEAVING,
    STORING,
    TIERS,
    VOLATILE,
    ChunkState,
    Index,
)
from kvtier.brain.plans import CacheEvent
from kvtier.brain.requests import Request
from kvtier.brain.slots import Slots
from kvtier.policy import EvictionPolicy
from kvtier.types import NO_SLOT, TIER0, BlockKey

_MAX_EVENTS = 4096  # batches kept if nobody asks for them; the oldest go first


class Residency:
    """Every change of a chunk's state goes through here; `ChunkState` says which verb leads where.

    A policy tracks exactly the chunks that its tier holds, but for those of tier 0 that are LEAVING:
    written down first, their slot is freed by the last answer unless somebody asks for them again.
    """

    def __init__(
        self,
        names: Sequence[str],
        index: Index,
        slots: Slots,
        policies: Sequence[EvictionPolicy],
        *,
        clock: Callable[[], float],
        events: bool = True,
    ) -> None:
        self.index = index
        self.slots = slots
        self.policies = policies  # of eviction, one per tier
        self.pins: dict[BlockKey, int] = {}
        self.evicted = Evicted()
        self.ages = Ages(len(names), clock)
        self.leaving = 0  # chunks
        self.chunks = [0] * len(names)
        self.news = 0  # grows with whatever may give tier 0 a victim that it had not
        self._names = names
        self._told = events  # somebody asks for them
        self._events: deque[CacheEvent] = deque(maxlen=_MAX_EVENTS)

    # slots of tier 0

    def claim(self, key: BlockKey) -> int:
        """Claim a slot for a chunk that comes up from below, which is FILLING then; NO_SLOT if none is free."""
        slot = self.slots.take()
        if slot != NO_SLOT:
            self.index.slots[self.index.rows[key]] = slot
            self.slots.use(slot)
        return slot

    def claim_all(
        self, places: Mapping[BlockKey, tuple[BlockKey | None, int]], *, volatile: bool
    ) -> list[int]:
        """Claim slots for as many chunks from the device as there are free ones, in order; they are STORING then.

        Returns:
            The slots.
        """
        slots = self.slots.take_used(len(places))
        index = self.index
        index.place(places.items(), slots)
        if volatile:
            for key, _ in zip(places, slots, strict=False):
                row = index.rows[key]
                if not index.flags[row] & TIERS:
                    index.flags[row] |= VOLATILE
        return slots

    def abandon(self, key: BlockKey) -> None:
        """Give back the slot of a chunk that was on its way in and did not make it."""
        row = self.index.rows[key]
        assert not self.index.flags[row] & IN_TIER0
        self._vacate(key, row)

    def arrived(self, keys: Sequence[BlockKey]) -> None:
        """Make chunks whose slots are filled on every rank RESIDENT."""
        rows, flags = [self.index.rows[key] for key in keys], self.index.flags
        arrived = ~STORING
        for row in rows:
            flags[row] = flags[row] & arrived | IN_TIER0
        self._enter(TIER0, keys, rows)

    def leave(self, key: BlockKey) -> None:
        """Note that a RESIDENT victim is being written down: it is LEAVING, its slot follows."""
        row = self.index.rows[key]
        assert self.index.state(row) is ChunkState.RESIDENT
        self.policies[TIER0].remove(key)
        self.index.flags[row] |= LEAVING
        self.leaving += 1

    def is_leaving(self, key: BlockKey) -> bool:
        """Whether a chunk is LEAVING."""
        return self.index.flags_of(key) & LEAVING != 0

    def rescue(self, keys: Iterable[BlockKey]) -> None:
        """Keep those of `keys` that are LEAVING: they are wanted again."""
        if self.leaving:
            back = [key for key in dict.fromkeys(keys) if self.is_leaving(key)]
            rows = [self.index.rows[key] for key in back]
            for row in rows:
                self.index.flags[row] &= ~LEAVING
            self.leaving -= len(back)
            self.news += 1
            self._track(TIER0, back, rows)

    def expel(self, key: BlockKey) -> None:
        """Take a chunk out of tier 0."""
        row = self.index.rows[key]
        self.leaving -= self.index.flags[row] & LEAVING != 0
        self._leave(TIER0, key)
        self._vacate(key, row)

    def drop(self, keys: Sequence[BlockKey]) -> None:
        """Take RESIDENT victims out of tier 0, as `expel` does, in one pass."""
        policy = self.policies[TIER0]
        if type(policy).evicted is EvictionPolicy.evicted:
            policy.remove_all(keys)
        else:
            for key in keys:
                policy.remove(key)
                policy.evicted(key)
        self.slots.release_all(self.index.vacate(keys))
        self.chunks[TIER0] -= len(keys)
        self.ages.left(TIER0, keys)
        self._tell(TIER0, keys, removed=True)

    # records of lower tiers

    def record(self, tier: int, keys: Sequence[tuple[BlockKey, Place, int]]) -> None:
        """Note that every rank has a record of these chunks in a lower tier, of so many bytes."""
        for key, place, nbytes in keys:
            row = self._row(key, place)
            self.index.flags[row] |= 1 << tier
            self.index.sizes[tier - 1][row] = nbytes
            self.index.read[row] &= ~(1 << tier)
        entered = [key for key, _, _ in keys]
        self._enter(tier, entered, [self.index.rows[key] for key in entered])

    def erase(self, tier: int, key: BlockKey) -> int:
        """Forget a lower tier's record and return its bytes."""
        nbytes = self.index.sizes[tier - 1][self.index.rows[key]]
        self._leave(tier, key)
        self.index.prune(key)
        return nbytes

    def note_read(self, tier: int, key: BlockKey) -> None:
        """Note that a lower tier's record was read."""
        self.index.read[self.index.rows[key]] |= 1 << tier

    def was_read(self, tier: int, key: BlockKey) -> bool:
        """Whether a lower tier's record was read since it was written, or found."""
        return bool(self.index.read[self.index.rows[key]] >> tier & 1)

    # pins

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Hold resident chunks, once for each mention."""
        pins = self.pins
        for key in keys:
            pins[key] = pins.get(key, 0) + 1

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Undo one `pin`."""
        pins = self.pins
        before = len(pins)
        for key in keys:
            left = pins[key] - 1
            if left:
                pins[key] = left
            else:
                del pins[key]
        self.news += len(pins) < before

    # use

    def touch(self, request: Request, keys: Sequence[BlockKey]) -> None:
        """Note a request's use of chunks, given in prefix order, in every tier: each once."""
        if fresh := request.touch(keys):
            for policy in self.policies:
                touch = policy.touch
                for key in fresh:
                    touch(key)

    def hit(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """Mark chunks as hit and return those that had been before."""
        index = self.index
        self.ages.used(keys)
        again = []
        for key in keys:
            row = index.rows[key]
            if index.flags[row] & HIT:
                again.append(key)
            else:
                index.flags[row] |= HIT
        return again

    def link(self, keys: Sequence[BlockKey], place: Callable[[int], Place]) -> None:
        """Give chunks that a scan found their place, now that a request shows it."""
        index = self.index
        for i in range(len(keys) - 1, -1, -1):
            row = index.rows.get(keys[i])
            if row is not None and not index.ends[row]:
                parent, end = place(i)
                index.link(row, parent, end)
                for tier, policy in enumerate(self.policies):
                    if index.flags[row] >> tier & 1 and (
                        tier != TIER0 or not index.flags[row] & LEAVING
                    ):
                        policy.remove(keys[i])
                        policy.insert(keys[i], parent)

    # scores

    def occupies(self, key: BlockKey, slot: int) -> bool:
        """Whether a chunk is readable in this very slot."""
        return self.index.resident(key) and self.index.slots[self.index.rows[key]] == slot

    def rate(self, key: BlockKey, score: float) -> None:
        """Note the score of a chunk that is here."""
        self.index.scores[self.index.rows[key]] = score

    # the whole

    def clear(self) -> None:
        """Forget every chunk and pin; slots still in use stay in quarantine."""
        for tier, policy in enumerate(self.policies):
            policy.clear()
            if self._told:
                self._tell(tier, self.held(tier), removed=True)
        self.slots.disown()
        self.index.clear()
        self.evicted.clear()
        self.ages.clear()
        self.chunks = [0] * len(self.policies)
        self.pins.clear()
        self.leaving = 0

    def events(self) -> list[CacheEvent]:
        """Take what changed since the last call, neighbours merged; nothing where nobody was to ask."""
        merged: list[CacheEvent] = []
        run: list[BlockKey] = []
        for event in self._events:
            if merged and (merged[-1].tier, merged[-1].removed) == (event.tier, event.removed):
                run.extend(event.keys)
                continue
            if merged:
                merged[-1] = merged[-1]._replace(keys=tuple(run))
            merged.append(event)
            run = list(event.keys)
        if merged:
            merged[-1] = merged[-1]._replace(keys=tuple(run))
        self._events.clear()
        return merged

    def held(self, tier: int) -> tuple[BlockKey, ...]:
        """List the chunks that a tier holds, in a pass over everything."""
        rows, flags = self.index.rows, self.index.flags
        if self.chunks[tier] == len(rows):
            return tuple(rows)
        return tuple([key for key, row in rows.items() if flags[row] >> tier & 1])

    def _row(self, key: BlockKey, place: Place) -> int:
        row = self.index.rows.get(key)
        if row is None:
            return self.index.add(key, place.parent, place.end)
        if place.end and not self.index.ends[row]:
            self.index.link(row, place.parent, place.end)
        return row

    def _vacate(self, key: BlockKey, row: int) -> None:
        self.slots.release(self.index.slots[row])
        self.index.slots[row] = NO_SLOT
        self.index.flags[row] &= ~(STORING | LEAVING)
        self.index.prune(key)

    def _enter(self, tier: int, keys: Sequence[BlockKey], rows: Sequence[int]) -> None:
        self._track(tier, keys, rows)
        self.news += 1
        self.chunks[tier] += len(keys)
        self.ages.entered(tier, keys)
        self._tell(tier, keys, removed=False)

    def _leave(self, tier: int, key: BlockKey) -> None:
        self.policies[tier].remove(key)
        self.chunks[tier] -= 1
        self.ages.left(tier, (key,))
        self.index.flags[self.index.rows[key]] &= ~(1 << tier)
        self._tell(tier, (key,), removed=True)

    def _tell(self, tier: int, keys: Sequence[BlockKey], *, removed: bool) -> None:
        if self._told and keys:
            self._events.append(CacheEvent(tier, self._names[tier], tuple(keys), removed))

    def _track(self, tier: int, keys: Sequence[BlockKey], rows: Sequence[int]) -> None:
        """Insert tail first."""
        index = self.index
        ends, parents = index.ends, index.parents
        depths = [ends[row] for row in rows]
        if any(map(ge, depths, depths[1:])):
            pairs = [*zip(reversed(keys), reversed(rows), strict=True)]  # equals keep their order
            pairs.sort(key=lambda pair: ends[pair[1]])
            keys, rows = [key for key, _ in pairs], [row for _, row in pairs]
        self.policies[tier].insert_all(keys[::-1], [parents[row] for row in reversed(rows)])
