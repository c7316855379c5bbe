"""Copies between the device and slots: plans that every rank carries out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count

from kvtier.brain.demotion import Demotion
from kvtier.brain.groups import Spot
from kvtier.brain.index import IN_TIER0, STORING
from kvtier.brain.overlap import Overlap
from kvtier.brain.plans import LoadPlan, StorePlan
from kvtier.brain.promotion import Promotion
from kvtier.brain.requests import Request
from kvtier.brain.scoring import Scoring
from kvtier.brain.state import State
from kvtier.brain.why import Why
from kvtier.hook import HookKind
from kvtier.types import NO_SLOT, TIER0, BlockKey

_NOTHING = StorePlan(0, (), (), ())


@dataclass(slots=True, eq=False)
class CopyPlan:
    """One plan under way; its slots are in use until every rank is done."""

    epoch: int
    keys: Sequence[BlockKey]
    slots: Sequence[int]
    pins: list[BlockKey]
    store: bool
    since: float
    pin: Callable[[Sequence[BlockKey]], None]
    coming: Collection[BlockKey] = ()  # were not in their slots when it was made

    def landed(self, key: BlockKey, *, ok: bool) -> None:
        """Take the news of a chunk that is coming: it stays until it is copied."""
        if ok:
            self.pin((key,))
            self.pins.append(key)


class Copies:
    """Make plans and end them. Plans of ended epochs only give their slots back."""

    def __init__(
        self,
        state: State,
        demotion: Demotion,
        promotion: Promotion,
        scoring: Scoring,
        overlap: Overlap,
    ) -> None:
        self.plans = state.copies
        self._state = state
        self._residency = state.residency
        self._demotion = demotion
        self._promotion = promotion
        self._scoring = scoring
        self._overlap = overlap
        self._admission = state.policies.admission[TIER0]
        self._ids = count(1)

    def load(self, request: Request | None, keys: Sequence[BlockKey]) -> LoadPlan:
        """Pin what is in tier 0 and give its slots; also those of what lands while the others are copied."""
        residency, index = self._residency, self._residency.index
        found = index.residents(keys)
        residency.rescue(found)
        residency.pin(found)
        fills = self._overlap.given(request, keys)
        slots = [index.slots[index.rows[key]] for key in found]
        slots += [fill.operation.op.slot for fill in fills.values()]
        self._state.counters.loads += len(slots)
        residency.slots.use_all(slots)
        plan = self._plan(found, slots, found, store=False)
        if request is not None and len(slots) < len(keys):
            self._state.refuse_load(request, Why.VANISHED)
        if request is not None and fills:
            self.plans[plan].coming = fills
            self._overlap.take_over(request, fills.values(), self.plans[plan])
        if len(found) == len(keys):
            return LoadPlan(plan, tuple(slots))
        held = dict(zip([*found, *fills], slots, strict=True))
        given = tuple(held.get(key, NO_SLOT) for key in keys)
        reads = {i: fills[key].operation.op.op for i, key in enumerate(keys) if key in fills}
        return LoadPlan(plan, given, reads, self._overlap.patience(len(keys)))

    def store(self, request: Request, keys: Sequence[BlockKey]) -> StorePlan:
        """Touch what is here and give slots to what is not, in order, as many as fit."""
        residency = self._residency
        here = residency.index.residents(keys)
        residency.rescue(here)
        residency.touch(request, here)
        fresh, parents = self._storable(request, keys)
        self._state.hooks.tell(HookKind.MISS, TIER0, fresh)
        if not fresh:
            return _NOTHING
        residency.rescue(parents)
        residency.pin(parents)  # or room would be made at the prefix's cost
        self._make_room(len(fresh))
        slots = residency.claim_all(fresh, volatile=not request.persist)
        taken = list(fresh)
        no_room = tuple(taken[len(slots) :])
        del taken[len(slots) :]
        if no_room:
            self._refuse(Why.NO_ROOM, len(no_room))
        if not taken:
            residency.unpin(parents)
            return _NOTHING._replace(no_room=no_room)
        plan = self._plan(taken, slots, parents, store=True)
        return StorePlan(plan, tuple(taken), tuple(slots), no_room)

    def finish(self, plan_id: int, failed: Collection[BlockKey]) -> None:
        """End a plan, once."""
        plan = self.plans.pop(plan_id, None)
        if plan is None:
            return
        self._residency.slots.done_all(plan.slots)
        if plan.epoch != self._state.operations.epoch:
            return
        self._residency.unpin(plan.pins)
        if plan.store:
            self._stored(plan.keys, failed)
        else:
            self._state.arena.spent += self._state.clock() - plan.since
            self._overlap.drop(plan.coming, plan)
            for key in failed:
                if key not in plan.coming:  # that one came too late, or is not here
                    self._lose(key)

    def _stored(self, keys: Sequence[BlockKey], failed: Collection[BlockKey]) -> None:
        for key in failed:
            if key in keys:
                self._residency.abandon(key)
        good = [key for key in keys if key not in failed] if failed else keys
        self._residency.arrived(good)
        self._demotion.stored(good)
        self._scoring.stored(good)
        self._state.counters.stores += len(good)

    def _storable(
        self, request: Request, keys: Sequence[BlockKey]
    ) -> tuple[dict[BlockKey, Spot], list[BlockKey]]:
        """Return the keys to take in, with their places, and, of their parents, those that tier 0 holds."""
        index = self._residency.index
        asked = self._admission is not None or self._state.hooks.watches(HookKind.INSERT)
        row_of, owned = index.rows.get, index.slots
        missing = [  # not here, nor on its way
            key for key in keys if (row := row_of(key)) is None or owned[row] == NO_SLOT
        ]
        fresh: dict[BlockKey, Spot] = {}
        parents: list[BlockKey] = []
        for key, spot in zip(missing, self._state.groups.spots(request, missing), strict=True):
            if spot is None or (asked and not self._admits(key, spot[1])):
                continue
            parent = spot[0]
            if parent is None or parent in fresh:
                fresh[key] = spot
                continue
            flags = index.flags_of(parent)
            if flags & (self._state.kept | STORING):
                fresh[key] = spot
                if flags & IN_TIER0:
                    parents.append(parent)
            else:
                self._refuse(Why.ORPHAN)
        return fresh, parents

    def _admits(self, key: BlockKey, end: int) -> bool:
        if self._admission is not None and not self._admission.admits(key, end):
            self._refuse(Why.NOT_ADMITTED)
            return False
        agreed = self._state.hooks.agree(HookKind.INSERT, TIER0, key)
        if not agreed:
            self._refuse(Why.VETOED)
        return agreed

    def _refuse(self, why: Why, chunks: int = 1) -> None:
        self._state.counters.store_refusals[why] += chunks

    def _make_room(self, n: int) -> None:
        lack = n - self._residency.slots.free
        if lack > 0:
            self._promotion.relieve()
            self._demotion.make_room(lack)

    def _plan(
        self,
        keys: Sequence[BlockKey],
        slots: Sequence[int],
        pins: list[BlockKey],
        *,
        store: bool,
    ) -> int:
        plan = next(self._ids)
        if slots:
            epoch, now = self._state.operations.epoch, self._state.clock()
            pin = self._residency.pin
            self.plans[plan] = CopyPlan(epoch, keys, slots, pins, store, now, pin)
        return plan

    def _lose(self, key: BlockKey) -> None:
        """Forget a chunk of tier 0 that could not be loaded, whoever holds it."""
        if not self._residency.index.resident(key):
            return
        epoch = self._state.operations.epoch
        held = sum(request.lose(key) for request in self._state.requests.values())
        for plan in self.plans.values():
            if plan.epoch == epoch:
                held += plan.pins.count(key)
                plan.pins = [pin for pin in plan.pins if pin != key]
        self._residency.unpin([key] * held)
        self._residency.expel(key)
        self._state.ahead.left(key)
