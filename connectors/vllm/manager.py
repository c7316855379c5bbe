"""The manager that vLLM asks: an adapter that turns its calls into the brain's and never raises."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingManager,
    OffloadKey,
    OffloadPolicy,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)

from kvtier.brain import TieredCache
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.hints import Hints
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.metrics import Meter
from kvtier.types import NO_SLOT, BlockKey, Placed

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        RequestOffloadState,
    )

try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
except ImportError:  # vLLM 0.31 does not tell sources apart
    CacheHitSource = None


class Planned(NamedTuple):
    """A plan that vLLM was given slots for and has not made a job of yet."""

    plan: int
    keys: tuple[BlockKey, ...]


class TieredCacheManager(OffloadingManager):
    """vLLM's view of the brain. Until `attach` it is an empty cache.

    Called from EngineCore's main thread only.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.brain: TieredCache | None = None
        self.planned: dict[int, Planned] = {}
        self.no_room: dict[str, Sequence[BlockKey]] = {}
        self._from_below: dict[str, set[BlockKey]] = {}
        self.storing = True
        self._unstored: set[str] = set()
        self._unloaded: set[str] = set()
        self._status: dict[str, RequestOffloadState] = {}
        self._known: dict[str, list[int]] = {}
        self._positions: dict[int, int] = {}
        self._meter = Meter()

    def attach(
        self, brain: TieredCache, groups: Sequence[int], status: "dict[str, RequestOffloadState]"
    ) -> None:
        """Start to serve: the brain, the KV-cache group ids in vLLM's order, and vLLM's own request table."""
        self.brain = brain
        self._positions = {group: i for i, group in enumerate(groups)}
        self._status = status

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self.brain is None or self.guard.broken:
            return LookupResult.MISS
        try:
            hit = self.brain.lookup(req_context.req_id, BlockKey(key))
            hit = hit and self._may_load(req_context)
        except Exception as exc:
            self.guard.trip(exc)
            return LookupResult.MISS
        return LookupResult.HIT if hit else LookupResult.MISS

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> "CacheHitSource":
        below = key in self._from_below.get(req_context.req_id, ())
        return CacheHitSource.DISK if below else CacheHitSource.HOST

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> SlotSpec:
        wanted = tuple(BlockKey(key) for key in keys)
        nothing = self._spec(None, wanted, [NO_SLOT] * len(wanted))
        return self.guard.run(lambda: self._load(wanted, req_context.req_id), nothing)

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        nothing = PrepareStoreOutput([], SlotSpec(None, ()), [])
        return self.guard.run(lambda: self._store(keys, req_context.req_id), nothing)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext(policy=OffloadPolicy.REQUEST_LEVEL)

    def on_request_finished(self, req_context: ReqContext) -> None:
        self.guard.run(lambda: self._depart(req_context.req_id), None)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self.guard.run(lambda: self._preempted(context.preempted_req_ids), None)

    def has_pending_work(self) -> bool:
        brain = self.brain
        return brain is not None and self.guard.run(brain.awake, False)

    def take_events(self) -> Iterable[OffloadingEvent]:
        return self.guard.run(self._events, ())

    def reset_cache(self) -> None:
        """Nothing: the connector resets the brain, because only it can name the next epoch."""

    def get_stats(self) -> "OffloadingConnectorStats | None":
        brain = self.brain
        if brain is None:
            return None
        if self.guard.broken:
            return self._meter.off()
        return self.guard.run(lambda: self._meter.collect(brain.stats()), None)

    def located(self, placed: Sequence[Placed]) -> None:
        """Take where ranks say that their memory is, for the metrics."""
        self._meter.place(placed)

    def arrive(self, request: str, hints: Hints) -> None:
        """Tell the brain a new request's keys, of every group, before anybody asks for them."""
        if self.brain is None:
            return
        status = self._status[request]
        status.update_offload_keys()
        groups = [[BlockKey(key) for key in state.offload_keys] for state in status.group_states]
        self._known[request] = [len(keys) for keys in groups]
        self.brain.arrive(request, groups, persist=hints.persist, hints=hints.facts())
        if not hints.store:
            self._unstored.add(request)
        if not hints.load:
            self._unloaded.add(request)

    def note_source(self, request: str, keys: Iterable[BlockKey]) -> None:
        """Remember which chunks of a request's hit come from below tier 0."""
        self._from_below.setdefault(request, set()).update(keys)

    def position(self, key: BlockKey) -> int:
        """Return the position of a key's group in vLLM's lists of groups."""
        return self._positions[int.from_bytes(key[-4:], "big")]

    def sync(self, request: str) -> None:
        """Tell the brain the keys that came since: decoded chunks, or more of a streamed prompt."""
        assert self.brain is not None
        known = self._known.get(request)
        if known is None:
            return
        for i, state in enumerate(self._status[request].group_states):
            if len(state.offload_keys) > known[i]:
                fresh = [BlockKey(key) for key in state.offload_keys[known[i] :]]
                self.brain.extend(request, i, fresh)
                known[i] = len(state.offload_keys)

    def _may_load(self, context: ReqContext) -> bool:
        if context.req_id in self._unloaded:
            return False
        return context.load_tier_filter.allows(Medium.CPU, Locality.LOCAL)

    def _load(self, keys: tuple[BlockKey, ...], request: str) -> SlotSpec:
        assert self.brain is not None
        plan = self.brain.plan_load(request, keys)
        self.planned[plan.plan_id] = Planned(plan.plan_id, keys)
        return self._spec(plan.plan_id, keys, plan.slots)

    def _store(self, keys: Collection[OffloadKey], request: str) -> PrepareStoreOutput:
        if self.brain is None or not self.storing or request in self._unstored:
            if self.brain is not None:
                self.brain.started(request)
            return PrepareStoreOutput([], SlotSpec(None, ()), [])
        self.sync(request)
        plan = self.brain.plan_store(request, [BlockKey(key) for key in keys])
        if plan.no_room:
            self.no_room[request] = plan.no_room
        if plan.keys:
            self.planned[plan.plan_id] = Planned(plan.plan_id, tuple(plan.keys))
        spec = self._spec(plan.plan_id, plan.keys, plan.slots)
        return PrepareStoreOutput([OffloadKey(key) for key in plan.keys], spec, [])

    def _spec(self, plan: int | None, keys: Sequence[BlockKey], slots: Sequence[int]) -> SlotSpec:
        grouped: list[list[int]] = [[] for _ in self._positions]
        for key, slot in zip(keys, slots, strict=True):
            grouped[self.position(key)].append(slot)
        return SlotSpec(plan, tuple(map(tuple, grouped)))

    def _depart(self, request: str) -> None:
        self._known.pop(request, None)
        self._unstored.discard(request)
        self._unloaded.discard(request)
        self._from_below.pop(request, None)
        self.no_room.pop(request, None)
        if self.brain is not None:
            self.brain.depart(request)

    def _preempted(self, requests: Iterable[str]) -> None:
        if self.brain is not None:
            for request in requests:
                self.brain.preempted(request)

    def _events(self) -> list[OffloadingEvent]:
        if self.brain is None:
            return []
        return [
            OffloadingEvent(
                keys=[OffloadKey(key) for key in event.keys],
                medium=Medium.CPU if event.tier == 0 else Medium.STORAGE,
                removed=event.removed,
            )
            for event in self.brain.events()
        ]
