"""The manager that vLLM asks: an adapter that passes its calls on to `scheduling` and never raises."""

from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import (
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

from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.metrics import Meter
from kvtier.connectors.vllm.prompts import Prompts
from kvtier.types import NO_SLOT, TIER0, BlockKey

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )
    from vllm.v1.request import Request

    from kvtier.connectors.vllm.scheduling import Scheduling

try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
except ImportError:  # vLLM 0.31 does not tell sources apart
    CacheHitSource = None


class TieredCacheManager(OffloadingManager):
    """vLLM's view of the cache. Until `serve`, which comes when the ranks have said hello, it is an empty one
    that asks to be offered again what there is to store.

    Called from EngineCore's main thread only.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.prompts = Prompts()
        self.meter = Meter(engine=self.prompts.stats)
        self.early: dict[str, Request] = {}
        """Those that came before `serve` and have not departed, in order."""
        self._side: Scheduling | None = None

    def serve(self, side: "Scheduling") -> None:
        """Pass everything on from now on."""
        self._side = side

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._side is None or self.guard.broken:
            return LookupResult.MISS
        try:
            hit = self._side.lookup(BlockKey(key), req_context)
        except Exception as exc:
            self.guard.trip(exc)
            return LookupResult.MISS
        return LookupResult.HIT if hit else LookupResult.MISS

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> "CacheHitSource":
        side = self._side
        below = side is not None and self.guard.run(
            partial(side.on_disk, BlockKey(key), req_context.req_id), False
        )
        return CacheHitSource.DISK if below else CacheHitSource.HOST

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> SlotSpec:
        side, wanted = self._side, tuple(BlockKey(key) for key in keys)
        if side is None:
            return SlotSpec(None, ())
        unknown = SlotSpec(None, ())  # a rank fails such a load as a whole
        nowhere = partial(side.statuses.slot_spec, None, wanted, [NO_SLOT] * len(wanted))
        nothing = self.guard.always(nowhere, unknown)
        return self.guard.run(partial(side.load, wanted, req_context.req_id), nothing)

    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        side, nothing = self._side, PrepareStoreOutput([], SlotSpec(None, ()), [])
        if side is None:
            return nothing if self.guard.broken else None
        wanted = [BlockKey(key) for key in keys]
        return self.guard.run(partial(side.store, wanted, req_context.req_id), nothing)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext(policy=OffloadPolicy.REQUEST_LEVEL)

    def on_request_finished(self, req_context: ReqContext) -> None:
        self.early.pop(req_context.req_id, None)
        if self._side is not None:
            self.guard.run(partial(self._side.depart, req_context.req_id), None)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        if self._side is not None:
            self.guard.run(partial(self._side.preempted, context.preempted_req_ids), None)

    def has_pending_work(self) -> bool:
        return self._side is not None and self.guard.run(self._side.awake, False)

    def take_events(self) -> Iterable[OffloadingEvent]:
        return () if self._side is None else self.guard.run(partial(_events, self._side), ())

    def reset_cache(self) -> None:
        """Nothing: the connector resets the brain, because only it can name the next epoch."""

    def get_stats(self) -> "OffloadingConnectorStats | None":
        self.guard.always(self.prompts.settle, None)
        if self.guard.broken:
            return self.guard.always(self.meter.off, None)
        return None if self._side is None else self.guard.run(self._side.stats, None)


def _events(side: "Scheduling") -> list[OffloadingEvent]:
    """Take what became readable and what left, as vLLM publishes it. What a store of many engines has is not told:
    nobody is told when it goes.
    """
    view = side.brain.view
    return [
        OffloadingEvent(
            keys=[OffloadKey(key) for key in event.keys],
            medium=Medium.CPU if event.tier == TIER0 else Medium.STORAGE,
            removed=event.removed,
        )
        for event in side.brain.events()
        if event.tier == TIER0 or view.tier(event.tier).capacity is not None
    ]
