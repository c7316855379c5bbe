"""Who holds what: the index, the slots, the pins and the policies, kept in step with each other."""

import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from operator import ge

from kvtier.brain.groups import Place
from kvtier.brain.hooks import Hooks
from kvtier.brain.index import HIT, IN_TIER0, TIERS, VOLATILE, Index
from kvtier.brain.plans import CacheEvent
from kvtier.brain.requests import Request
from kvtier.brain.slots import Slots
from kvtier.hook import HookKind
from kvtier.policy import EvictionPolicy
from kvtier.types import NO_SLOT, TIER0, BlockKey

_MAX_EVENTS = 4096  # batches kept if nobody asks for them; the oldest go first


class Residency:
    """Every change of residency goes through here.

    A policy tracks exactly the chunks that its tier holds, but for those of tier 0 that are `leaving`:
    written down first, their slot is freed by the last answer unless somebody asks for them again.
    """

    def __init__(self, names: Sequence[str], hooks: Hooks) -> None:
        self.hooks = hooks
        self.index = Index(len(names) - 1)
        self.slots = Slots(0)
        self.pins: dict[BlockKey, int] = {}
        self.leaving: set[BlockKey] = set()
        self.visible = IN_TIER0  # the tiers that lookups see
        self.policies: list[
            EvictionPolicy
        ] = []  # one per tier; made after, they ask this residency
        self.awaited: dict[BlockKey, int] = {}  # what waiting requests need, see `Waiting`
        self.chunks = [0] * len(names)
        self._names = names
        self._events: deque[CacheEvent] = deque(maxlen=_MAX_EVENTS)

    # slots of tier 0

    def claim(self, key: BlockKey, place: Place, *, volatile: bool = False) -> int:
        """Reserve a slot for a chunk on its way in; NO_SLOT if none is free."""
        slot = self.slots.take()
        if slot == NO_SLOT:
            return NO_SLOT
        row = self._row(key, place)
        self.index.slots[row] = slot
        if volatile and not self.index.flags[row] & TIERS:
            self.index.flags[row] |= VOLATILE
        self.slots.use(slot)
        return slot

    def claim_all(
        self, places: Mapping[BlockKey, tuple[BlockKey | None, int]], *, volatile: bool
    ) -> list[int]:
        """Claim slots for as many chunks as there are free ones, in order; return the slots."""
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
        """Give back the slot of a chunk that did not make it."""
        self._vacate(key, self.index.rows[key])

    def arrived(self, keys: Sequence[BlockKey]) -> None:
        """Make chunks whose slots are filled on every rank readable."""
        rows, flags = [self.index.rows[key] for key in keys], self.index.flags
        for row in rows:
            flags[row] |= IN_TIER0
        self._enter(TIER0, keys, rows)

    def leave(self, key: BlockKey) -> None:
        """Note that a victim is being written down; its slot follows."""
        self.policies[TIER0].remove(key)
        self.leaving.add(key)

    def rescue(self, keys: Iterable[BlockKey]) -> None:
        """Keep those of `keys` that were leaving: they are wanted again."""
        if self.leaving:
            back = [key for key in keys if key in self.leaving]
            self.leaving.difference_update(back)
            self._track(TIER0, back, [self.index.rows[key] for key in back])

    def expel(self, key: BlockKey) -> None:
        """Take a chunk out of tier 0."""
        self.leaving.discard(key)
        self._leave(TIER0, key)
        self._vacate(key, self.index.rows[key])

    def drop(self, keys: Sequence[BlockKey]) -> None:
        """Take victims out of tier 0."""
        policy = self.policies[TIER0]
        remove, evicted = policy.remove, policy.evicted
        silent = type(policy).evicted is EvictionPolicy.evicted
        for key in keys:
            remove(key)
            if not silent:
                evicted(key)
        self.leaving.difference_update(keys)
        self.slots.release_all(self.index.vacate(keys))
        self.chunks[TIER0] -= len(keys)
        self._events.append(CacheEvent(TIER0, self._names[TIER0], tuple(keys), True))

    # records of lower tiers

    def record(self, tier: int, keys: Sequence[tuple[BlockKey, Place, int]]) -> None:
        """Note that every rank has a record of these chunks, of so many bytes."""
        for key, place, nbytes in keys:
            row = self._row(key, place)
            self.index.flags[row] |= 1 << tier
            self.index.sizes[tier - 1][row] = nbytes
        entered = [key for key, _, _ in keys]
        self._enter(tier, entered, [self.index.rows[key] for key in entered])

    def erase(self, tier: int, key: BlockKey) -> int:
        """Forget a lower tier's record and return its bytes."""
        nbytes = self.index.sizes[tier - 1][self.index.rows[key]]
        self._leave(tier, key)
        self.index.prune(key)
        return nbytes

    # pins

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Hold resident chunks, once for each mention."""
        pins = self.pins
        for key in keys:
            pins[key] = pins.get(key, 0) + 1

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Undo one `pin`."""
        pins = self.pins
        for key in keys:
            left = pins[key] - 1
            if left:
                pins[key] = left
            else:
                del pins[key]

    # use

    def touch(self, request: Request, keys: Sequence[BlockKey]) -> None:
        """Note a request's use of chunks, given in prefix order, in every tier: each once."""
        touched = request.touched
        fresh = [key for key in reversed(keys) if key not in touched]
        if not fresh:
            return
        touched.update(fresh)
        for policy in self.policies:
            touch = policy.touch
            for key in fresh:
                touch(key)

    def hit(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Mark chunks as hit and return those that had been before."""
        index = self.index
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
                        tier != TIER0 or keys[i] not in self.leaving
                    ):
                        policy.remove(keys[i])
                        policy.insert(keys[i], parent)

    # choice

    def victims(
        self, tier: int, n: int, pinned: Container[BlockKey], *, needed: bool = True
    ) -> list[BlockKey]:
        """Choose up to `n` chunks to evict.

        If `needed`, those that waiting requests need or hooks refuse to evict come last, else never.
        """
        policy, awaited = self.policies[tier], self.awaited
        hooked = self.hooks.watches(HookKind.EVICT)
        if not awaited and not hooked:
            return policy.victims(n, pinned.__contains__)
        chosen = policy.victims(n, lambda key: key in pinned or key in awaited)
        if hooked:
            chosen = self._unless_vetoed(tier, n, pinned, chosen)
        if needed and len(chosen) < n:
            first = set(chosen)
            more = policy.victims(n, pinned.__contains__)
            chosen += [key for key in more if key not in first][: n - len(chosen)]
        return chosen

    def _unless_vetoed(
        self, tier: int, n: int, pinned: Container[BlockKey], chosen: list[BlockKey]
    ) -> list[BlockKey]:
        """Ask the hooks for each victim, and choose again without those they refuse; they may refuse a few."""
        asked: set[BlockKey] = set()
        vetoed: set[BlockKey] = set()
        while len(vetoed) < self.hooks.max_vetoes:
            fresh = [key for key in chosen if key not in asked]
            before = len(vetoed)
            for key in fresh:
                asked.add(key)
                if not self.hooks.agree(HookKind.EVICT, tier, key):
                    vetoed.add(key)
                    break
            if len(vetoed) == before:
                return chosen
            chosen = self.policies[tier].victims(
                n, lambda key: key in pinned or key in self.awaited or key in vetoed
            )
        return chosen

    def end(self, key: BlockKey) -> int:
        """Return where a chunk ends in its sequence, 0 if that is not known."""
        row = self.index.rows.get(key)
        return 0 if row is None else self.index.ends[row]

    def occupies(self, key: BlockKey, slot: int) -> bool:
        """Whether a chunk is readable in this very slot."""
        return self.index.resident(key) and self.index.slots[self.index.rows[key]] == slot

    def rate(self, key: BlockKey, score: float) -> None:
        """Note the score of a chunk that is here."""
        self.index.scores[self.index.rows[key]] = score

    def score(self, key: BlockKey) -> float | None:
        """Return a chunk's score, None if it has none."""
        row = self.index.rows.get(key)
        score = math.nan if row is None else self.index.scores[row]
        return None if math.isnan(score) else score

    # the whole

    def clear(self) -> None:
        """Forget every chunk and pin; slots still in use stay in quarantine."""
        for tier, policy in enumerate(self.policies):
            policy.clear()
            if held := self._held(tier):
                self._events.append(CacheEvent(tier, self._names[tier], held, True))
        self.slots.disown()
        self.index = Index(len(self.policies) - 1)
        self.chunks = [0] * len(self.policies)
        self.pins.clear()
        self.leaving.clear()

    def events(self) -> list[CacheEvent]:
        """Take what changed since the last call, neighbours merged."""
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

    def _held(self, tier: int) -> tuple[BlockKey, ...]:
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
        self.index.prune(key)

    def _enter(self, tier: int, keys: Sequence[BlockKey], rows: Sequence[int]) -> None:
        self._track(tier, keys, rows)
        self.chunks[tier] += len(keys)
        if keys:
            self._events.append(CacheEvent(tier, self._names[tier], tuple(keys), False))

    def _leave(self, tier: int, key: BlockKey) -> None:
        self.policies[tier].remove(key)
        self.chunks[tier] -= 1
        self.index.flags[self.index.rows[key]] &= ~(1 << tier)
        self._events.append(CacheEvent(tier, self._names[tier], (key,), True))

    def _track(self, tier: int, keys: Sequence[BlockKey], rows: Sequence[int]) -> None:
        """Insert tail first."""
        index, insert = self.index, self.policies[tier].insert
        ends, parents = index.ends, index.parents
        depths = [ends[row] for row in rows]
        if any(map(ge, depths, depths[1:])):
            pairs = [*zip(reversed(keys), reversed(rows), strict=True)]  # equals keep their order
            pairs.sort(key=lambda pair: ends[pair[1]])
            keys, rows = [key for key, _ in pairs], [row for _, row in pairs]
        for key, row in zip(reversed(keys), reversed(rows), strict=True):
            insert(key, parents[row])
