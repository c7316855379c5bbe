"""An engine in front of the brain: requests that arrive, hit, load, store, are preempted and leave.

It asks as the connector asks, and asserts that what it is promised comes true. Where a call cannot
apply (no request, no plan) it does nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvtier.brain import StorePlan, TieredCache, TierSpec, TierStats
from kvtier.brain.index import ChunkState
from kvtier.config import Plugin
from kvtier.facts import TierFacts
from kvtier.hook import HookSet
from kvtier.policies.prefetch.arrival import ArrivalPolicy
from kvtier.policy import AdmissionPolicy, EvictionPolicy
from kvtier.registry import build
from kvtier.types import (
    NO_SLOT,
    BlockKey,
    Medium,
    OpKind,
    OpResult,
    OpStatus,
    ScanBatch,
    TierOp,
    WriteMode,
)
from tests.brain.fake_ranks import CHUNK, FULL, RECORD, WINDOW, Clock, Content, Ranks, chain

_MAX_REQUESTS = 6


@dataclass
class Req:
    """What the engine knows of a request."""

    name: str
    full: list[BlockKey]
    window: list[BlockKey]
    source: str
    epoch: int | None = None  # of its KV, once some is computed


class Shape(NamedTuple):
    """One engine's configuration."""

    ranks: int = 1
    slots: int = 8
    capacity: int = 8  # records of each lower tier
    modes: tuple[WriteMode, ...] = (WriteMode.ON_EVICT,)
    hybrid: bool = False
    prefetch: bool = False
    watermark: float = 0.2
    eviction: str = "lru"
    admission: str = "always"
    found: tuple[tuple[str, int], ...] = ()  # (name, chunk) in the lower tiers at start
    medium: Medium | None = None  # of the lower tiers
    hooks: HookSet = HookSet()
    below_admission: str = ""  # of the lower tiers; as `admission` if empty
    asked: int = 0  # the room of so many lower tiers, the last ones, is not ours
    overlap: bool = False

    @property
    def owned(self) -> int:
        """How many lower tiers have a room that is ours."""
        return max(0, len(self.modes) - self.asked)


class Never(AdmissionPolicy):
    """Admits nothing."""

    def admits(self, key: BlockKey, end_token: int) -> bool:
        return False


def eviction(name: str) -> Callable[[TierFacts], EvictionPolicy]:
    return lambda facts: build("eviction", Plugin(kind=name), facts)


def admission(name: str) -> Callable[[TierFacts], AdmissionPolicy] | None:
    if name == "always":
        return None
    return lambda facts: build("admission", Plugin(kind=name), facts)


class Engine:
    """Everything around one brain. `n` picks one of what there is."""

    def __init__(self, shape: Shape) -> None:
        self.clock = Clock()
        self.hybrid = shape.hybrid
        self.requests: dict[str, Req] = {}
        self.owned = shape.owned
        self.published: list[set[BlockKey]] = [set() for _ in range(1 + len(shape.modes))]
        self.cache = TieredCache(
            groups=[FULL, WINDOW] if shape.hybrid else [FULL],
            ranks=shape.ranks,
            tier0=eviction(shape.eviction),
            admission=admission(shape.admission),
            lower=[
                TierSpec(
                    name=f"tier{i}",
                    capacity=shape.capacity * RECORD if i <= shape.owned else None,
                    write=mode,
                    deadline_s=2.0,
                    persistent=True,
                    eviction=eviction(shape.eviction) if i <= shape.owned else None,
                    admission=admission(shape.below_admission or shape.admission),
                    medium=shape.medium,
                    max_writes=3,
                    max_idle_writes=3,
                )
                for i, mode in enumerate(shape.modes, 1)
            ],
            prefetch=[ArrivalPolicy] if shape.prefetch else [],
            hooks=shape.hooks,
            clock=self.clock,
            low_watermark=shape.watermark,
            overlap=shape.overlap,
        )
        self.ranks = Ranks(self.cache, shape.ranks, shape.slots, len(shape.modes), shape.owned)
        self.to_list: dict[tuple[int, int], list[bytes]] = {}
        self._listing: dict[int, int] = {}  # by tier: the OPEN whose list it is
        self._count = 0
        self._populate(shape.found)
        self.cache.open(shape.slots, "manifest")

    def _populate(self, found: Sequence[tuple[str, int]]) -> None:
        """Leave records behind for the scan; later ranks miss some."""
        for tier in range(1, 1 + self.owned):
            for n, rank in enumerate(self.ranks.ranks):
                keys = sorted({chain(name, i + 1)[i] for name, i in found[: len(found) - n]})
                rank.records[tier] = {key: Content(key, 0) for key in keys}

    # requests

    def arrive(self, source: str, n: int, persist: bool, reads: bool = True) -> None:
        self._count += 1
        if len(self.requests) >= _MAX_REQUESTS:
            self.depart(0)
        source = source if persist else f"lora-{source}"
        req = Req(f"r{self._count}", chain(source, n), chain(source, n, group=1), source)
        self.requests[req.name] = req
        groups = [req.full, req.window] if self.hybrid else [req.full]
        self.cache.arrive(req.name, groups, persist=persist, reads=reads)

    def extend(self, n: int, more: int) -> None:
        if req := self._pick(n):
            for group, keys in enumerate([req.full, req.window][: 1 + self.hybrid]):
                longer = chain(req.source, len(keys) + more, group=group)
                self.cache.extend(req.name, group, longer[len(keys) :])
                keys[:] = longer

    def schedule(self, n: int, load: bool) -> None:
        """Do what the connector does when the scheduler reaches a request."""
        req = self._pick(n)
        if req is None or not self.cache.ready(req.name) or self.cache.asks.waits(req.name, 0):
            return
        for _ in range(2):
            keys = self._hit(req)
            if not keys:
                return
            plan = self.cache.plan_read(req.name, keys)
            if plan is None:
                self._pinned(req, keys, load=load)
                return
            if plan.reading:
                assert not self.cache.ready(req.name)
                return
        raise AssertionError("a settled request was promised what cannot come")

    def load_anything(self, n: int, upto: int) -> None:
        """Load chunks that may be gone."""
        if req := self._pick(n):
            keys = req.full[:upto]
            self.ranks.loaded(self.cache.plan_load(req.name, keys), keys)

    def store(self, n: int, upto: int) -> None:
        req = self._pick(n)
        if req is None:
            return
        if req.epoch is None:
            req.epoch = self.ranks.epoch
        keys = req.full[:upto] + (req.window[:upto] if self.hybrid else [])
        keys += self._tail(req, min(upto, len(req.full)))
        plan = self.ranks.stored(self.cache.plan_store(req.name, keys), req.epoch)
        assert [key for key in keys if key in plan.keys] == list(plan.keys)
        assert not set(plan.keys) & set(plan.no_room)
        if req.epoch != self.ranks.epoch:
            assert not plan.keys, "a store of old KV"

    def churn(self, n: int) -> None:
        """Let a long request that nobody asks for again pass through tier 0."""
        self._count += 1
        keys = chain(f"lora-churn{self._count}", n)
        self.cache.arrive("churn", [keys, []][: 1 + self.hybrid], persist=False)
        plan = self.ranks.stored(self.cache.plan_store("churn", keys))
        if plan.keys:
            self.ranks.finish(plan.plan_id)
        self.cache.depart("churn")

    def finish(self, n: int, failed: set[int]) -> None:
        if self.ranks.copies:
            plan_id = list(self.ranks.copies)[n % len(self.ranks.copies)]
            copy = self.ranks.copies[plan_id]
            self.ranks.finish(plan_id, [key for i, key in enumerate(copy.keys) if i in failed])
            self.cache.finish(plan_id)

    def cancel(self, n: int) -> None:
        if req := self._pick(n):
            self.cache.cancel(req.name)

    def depart(self, n: int) -> None:
        if req := self._pick(n):
            del self.requests[req.name]
            self.cache.depart(req.name)
            self.cache.depart(req.name)

    def preempt(self, n: int) -> None:
        if req := self._pick(n):
            req.epoch = None
            self.cache.preempted(req.name)

    def reset(self, everybody: bool) -> None:
        stale = [req.name for req in self.requests.values() if req.epoch is not None]
        self.ranks.reset(None if everybody else stale)
        self.ranks.lost.clear()

    def serve_all(self) -> None:
        """Let the engine ask for everybody, and everything be answered, until nobody waits: that comes to an end."""
        for _ in range(60):
            for n in range(len(self.requests)):
                self.schedule(n, load=True)
            for plan_id in list(self.ranks.copies):
                self.ranks.finish(plan_id)
            self.step()
            self.clock.now += 0.05
            self.verify()
            if not any(req.reading for req in self.cache._requests.values()):
                return
        raise AssertionError("somebody waits for ever")

    # the ranks

    def drain(self) -> None:
        """End a step; whoever waits for room then, waits for something."""
        self.cache.asks.heard(self.cache.asks.round)  # with the output of the step before
        self.ranks.drain()
        if self.cache._promotion.turns.waiting():
            assert self.ranks.pending or self.ranks.copies, "all wait, and nothing moves"

    def step(self) -> None:
        self.drain()
        self.ranks.answer_all()

    def answer(self, n: int, rank: int, status: OpStatus) -> None:
        if self.ranks.pending:
            op = list(self.ranks.pending)[n % len(self.ranks.pending)]
            left = sorted(self.ranks.left[op])
            self.ranks.answer(op, left[rank % len(left)], status)

    def die(self, rank: int) -> None:
        n = rank % len(self.ranks.ranks)
        for op in [op for op, left in self.ranks.left.items() if n in left]:
            self.ranks.answer(op, n, OpStatus.DIED)
        for tier in [tier for tier, rank in self.to_list if rank == n]:
            self._list(tier, n)  # its next process begins anew

    def answer_nothing(self, op: int, rank: int) -> None:
        """Answer an operation that is over."""
        if op not in self.ranks.pending and any(op == old.op for old in self.ranks.sent):
            self.cache.complete([OpResult(rank, op, OpStatus.OK)])

    def scan(self, n: int, size: int) -> None:
        """List some more of what a rank has, for the OPEN that was ordered last."""
        for tier, opening in self.ranks.openings.items():
            if tier <= self.owned and self._listing.get(tier) != opening:
                self._listing[tier] = opening
                for rank in range(len(self.ranks.ranks)):
                    self._list(tier, rank)
        if not self.to_list:
            return
        where = list(self.to_list)[n % len(self.to_list)]
        tier, rank = where
        keys, left = self.to_list[where][:size], self.to_list[where][size:]
        mtimes = [float(100 * i) for i in range(len(keys))]
        sizes = [RECORD] * len(keys)
        opening = self._listing[tier]
        self.cache.scanned(
            ScanBatch(rank, tier, opening - 1, [b"late".ljust(36)], [1], [0.0], True)
        )
        self.cache.scanned(ScanBatch(rank, tier, opening, keys, sizes, mtimes, not left))
        if left:
            self.to_list[where] = left
        else:
            del self.to_list[where]

    def _list(self, tier: int, rank: int) -> None:
        self.to_list[tier, rank] = sorted(self.ranks.ranks[rank].records[tier])

    def list_all(self) -> None:
        """List all that is still to be listed."""
        self.scan(0, 100)
        while self.to_list:
            self.scan(0, 100)

    def lose(self, tier: int, rank: int, n: int) -> None:
        """Remove a record behind the brain's back."""
        if len(self.published) > 1:
            tier = 1 + tier % (len(self.published) - 1)
            rank %= len(self.ranks.ranks)
            records = self.ranks.ranks[rank].records[tier]
            if records:
                key = sorted(records)[n % len(records)]
                del records[key]
                self.ranks.lost.add((rank, tier, key))

    def ask(self) -> None:
        self.cache.awake()
        if self.cache.room():
            assert self.cache.stats().free_slots or self.published[0]
        assert self.cache.stats().tiers[0].chunks == len(self.published[0])

    # judgement

    def verify(self) -> None:
        """Assert that everything the brain says is true, now."""
        self.ranks.verify()
        for event in self.cache.events():
            held = self.published[event.tier]
            if event.removed:
                assert held.issuperset(event.keys)
                held.difference_update(event.keys)
            else:
                assert held.isdisjoint(event.keys)
                held.update(event.keys)
        view = self.cache.view
        leaving = {key for key in view.keys(0) if view.state(key) is ChunkState.LEAVING}
        for tier, held in enumerate(self.published):
            now = set(view.keys(tier))
            assert held == now, "events do not add up"
            tracked = set(view.policy(tier).victims(1000, lambda key: False))
            if tier > self.owned:
                assert not tracked, "a victim in a tier that is not ours"
            else:
                assert tracked == (held - leaving if tier == 0 else held)

    def slow_copies(self, seconds: float) -> None:
        """Let the brain know that a chunk's copy to the device takes so long."""
        self.cache.transferred(CHUNK << 20, seconds * (1 << 20))

    def end(self) -> None:
        """Let everything end, then assert that nothing is left."""
        self.serve_all()
        for name in list(self.requests):
            self.cache.depart(name)
        for plan_id in list(self.ranks.copies):
            self.ranks.finish(plan_id)
        for _ in range(3):
            self.ranks.settle()
            self.list_all()
            self.ranks.settle()
            self.clock.now += 100
        self.ranks.settle()  # what became due meanwhile
        self.ranks.check_known()
        self.verify()
        stats = self.cache.stats()
        assert stats.pinned == stats.reading == stats.quarantined_slots == stats.requests == 0
        assert not self.cache.view.leaving
        assert not self.cache.awake()

    def _pick(self, n: int) -> Req | None:
        requests = list(self.requests.values())
        return requests[n % len(requests)] if requests else None

    def _tail(self, req: Req, n: int) -> list[BlockKey]:
        """Make the keys of what ends inside the chunk after `n` others, of a hybrid model."""
        if not self.hybrid:
            return []
        keys = [chain(f"{req.source}~", n + 1, group)[n] for group in (0, 1)]
        self.cache.end_inside(req.name, dict.fromkeys(keys, 16 * n + 8))
        return keys

    def _hit(self, req: Req) -> list[BlockKey]:
        n = 0
        while n < len(req.full) and self.cache.lookup(req.name, req.full[n]):
            n += 1
        window: list[BlockKey] = []
        while self.hybrid and n:
            window = req.window[max(0, n - 2) : n]
            if all(self.cache.lookup(req.name, key) for key in window):
                break
            n -= 1
        tail = self._tail(req, n)
        found = tail and all(self.cache.lookup(req.name, key) for key in tail)
        return req.full[:n] + (tail if found else window if n else [])

    def _pinned(self, req: Req, keys: list[BlockKey], *, load: bool) -> None:
        assert self.cache.plan_read(req.name, keys) is None
        assert self._hit(req) == keys
        coming = self.cache.view.coming(req.name)
        for key in keys:
            if key not in coming:
                self.ranks.expect(key, self.cache.view.slot(key))
        if load and req.epoch in (None, self.ranks.epoch):
            req.epoch = self.ranks.epoch
            plan = self.ranks.loaded(self.cache.plan_load(req.name, keys), keys)
            assert NO_SLOT not in plan.slots, "a pinned chunk vanished"


def started(shape: Shape) -> Engine:
    """Make an engine whose tiers are open and whose scans are over."""
    engine = Engine(shape)
    engine.step()
    engine.list_all()
    engine.step()
    engine.ranks.sent.clear()
    return engine


def arrive(made: Engine, name: str, keys: list[BlockKey], *, persist: bool = True) -> None:
    made.cache.arrive(name, [keys], persist=persist)


def store(made: Engine, name: str, keys: list[BlockKey]) -> StorePlan:
    """Store and finish at once."""
    plan = made.ranks.stored(made.cache.plan_store(name, keys))
    if plan.keys:
        made.ranks.finish(plan.plan_id)
    return plan


def here(made: Engine, keys: list[BlockKey]) -> list[bool]:
    return [made.cache.view.holds(0, key) for key in keys]


def sent(made: Engine, kind: OpKind) -> list[TierOp]:
    """Step, and return the operations of one kind that the brain sent since `started`."""
    made.ranks.drain()
    return [op for op in made.ranks.sent if op.kind is kind]


def stored(made: Engine, keys: list[BlockKey]) -> None:
    """Let a request arrive, store its prefix and leave."""
    name = keys[0].decode()
    arrive(made, name, keys)
    store(made, name, keys)
    made.cache.depart(name)


def below(made: Engine, keys: list[BlockKey]) -> list[bool]:
    """Tell which chunks the first lower tier holds."""
    return [made.cache.view.holds(1, key) for key in keys]


def tier_of(made: Engine) -> TierStats:
    """Return the numbers of the first lower tier."""
    return made.cache.stats().tiers[1]


def rest(cache: TieredCache, tier: int = 1) -> None:
    """Let a tier fail until it rests."""
    while cache.view.serving(tier):
        cache._state.lowers[tier - 1].breaker.failed(OpKind.READ)


def put(made: Engine, keys: list[BlockKey], tier: int = 1) -> None:
    """Let a lower tier hold records that no scan and no write made known."""
    space = made.cache._state.lowers[tier - 1].space
    for key in keys:
        if space:
            space.reserve(key, RECORD)
            space.wrote(key, RECORD)
        for rank in made.ranks.ranks:
            rank.records[tier][key] = Content(key, made.ranks.epoch)
    places = [made.cache._state.groups.at([key], 0, 0) for key in keys]
    records = [(k, p, RECORD) for k, p in zip(keys, places, strict=True)]
    made.cache._residency.record(tier, records)
