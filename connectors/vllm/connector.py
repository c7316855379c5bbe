"""The connector that vLLM builds: one class, two roles. Every hook of ours runs behind the guard."""

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvtier.brain import Why
from kvtier.brain.metric import Samples
from kvtier.connectors.vllm import increments, settings, start, validity
from kvtier.connectors.vllm.live import Fetch
from kvtier.connectors.vllm.looks import Trust
from kvtier.connectors.vllm.lookups import Lookups
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.null_connector import NullConnector
from kvtier.connectors.vllm.rank import Rank
from kvtier.connectors.vllm.scheduling import Scheduling
from kvtier.connectors.vllm.step_times import StepTimes
from kvtier.connectors.vllm.summary import Summary

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        PromMetric,
        PromMetricT,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


class KVTierConnector(OffloadingConnector):
    """vLLM's offloading connector with the brain behind it and an I/O process per rank below it.

    What is vLLM's stays vLLM's (which blocks, when, fencing, hybrid groups): each hook calls the base class
    and adds ours. `scheduling` exists in EngineCore, `rank` in each worker.
    """

    _times = StepTimes(Samples())  # of EngineCore's half, in its books

    def __new__(  # another connector, where there is nothing that this one could do
        cls,
        vllm_config: "VllmConfig",
        role: KVConnectorRole,
        kv_cache_config: "KVCacheConfig",
    ) -> "KVTierConnector | NullConnector":
        if validity.objection(vllm_config, kv_cache_config):
            return NullConnector(vllm_config, role, kv_cache_config)
        return object.__new__(cls)

    def __init__(
        self,
        vllm_config: "VllmConfig",
        role: KVConnectorRole,
        kv_cache_config: "KVCacheConfig",
    ) -> None:
        config = settings.configure(vllm_config, kv_cache_config)
        super().__init__(vllm_config, role, kv_cache_config)
        self._scheduling: Scheduling | None = None
        self._rank: Rank | None = None
        self._lookups = Lookups()
        self._forsaking = False  # a reset is to be told to the ranks
        if self.connector_scheduler is not None:
            self._scheduling = Scheduling(
                config, vllm_config, kv_cache_config, self.connector_scheduler
            )
            size = settings.chunk_size(config, vllm_config, kv_cache_config)
            self._scheduling.why_chunks = size.why
            self._times = StepTimes(self._scheduling.prompts.stats.steps)
            increments.install(self.connector_scheduler, self._scheduling.guard)
        if self.connector_worker is not None:
            self._rank = Rank(config, vllm_config, kv_cache_config, self.connector_worker)

    @property
    def scheduling(self) -> Scheduling:
        """The EngineCore side."""
        assert self._scheduling is not None
        return self._scheduling

    @property
    def rank(self) -> Rank:
        """The worker side."""
        assert self._rank is not None
        return self._rank

    # EngineCore

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Nothing: of several connectors each gets what the first one said. Our ranks say hello in their answers."""

    def on_new_request(self, request: "Request") -> None:
        side = self.scheduling
        side.guard.always(partial(side.admit, request), None)
        side.guard.run(partial(self._lookups.forget, request.request_id), None)
        super().on_new_request(request)
        side.guard.run(partial(side.arrive, request), None)
        if side.guard.broken:
            side.guard.always(side.meter.refuse, None)

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        side = self.scheduling
        if side.guard.run(partial(side.sits_out, request), False):
            return None, False
        if side.guard.run(partial(side.reading, request, num_computed_tokens), False):
            return None, False
        name, lookups = request.request_id, self._lookups
        if side.guard.run(partial(lookups.waits, name, num_computed_tokens), False):
            return None, False
        side.guard.run(partial(side.asked, request, num_computed_tokens), None)
        with self._times.lookup:
            answer, deferred = self._match(request, num_computed_tokens)
        looked = partial(lookups.looked, name, num_computed_tokens, deferred=deferred)
        side.guard.run(looked, None)
        return answer

    def _match(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[tuple[int | None, bool], bool]:
        """Return vLLM's answer with what is pinned for it, and whether it hangs on a copy or a load under way."""
        side = self.scheduling
        shares = partial(side.statuses.shares_load, request, num_computed_tokens)
        if side.guard.run(shares, False):
            return (None, False), True
        for _ in range(2):
            answer = super().get_num_new_matched_tokens(request, num_computed_tokens)
            hit = answer[0]
            if not hit:
                if hit == 0:
                    self._cancel(request)  # what was pinned for a hit that is not needed any more
                return answer, hit is None
            match side.guard.run(partial(side.watch.trust, request.request_id), Trust.NO):
                case Trust.WAIT:
                    return (None, False), False
                case Trust.NO:
                    self._cancel(request)
                    side.guard.run(partial(self._distrust, request), None)
                    return (0, False), False
            fetch = partial(side.fetch, request, num_computed_tokens, hit)
            match side.guard.run(fetch, Fetch.SHORTER):
                case Fetch.PINNED:
                    return answer, False
                case Fetch.READING:
                    side.guard.run(partial(side.prompts.waits, request.request_id), None)
                    return (None, False), False
        return (0, False), False

    def get_external_cache_hit_sources(
        self, request: "Request", num_external_tokens: int
    ) -> "dict[CacheHitSource, int]":
        side = self.scheduling
        side.guard.run(partial(side.statuses.join_loaded, request, side.source), None)
        found: dict[CacheHitSource, int] = super().get_external_cache_hit_sources(
            request, num_external_tokens
        )
        return found

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        if num_external_tokens == 0:
            self._cancel(request)
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        side = self.scheduling
        side.guard.run(partial(side.scheduled, request, num_external_tokens), None)
        side.guard.always(partial(side.admitted, request, num_external_tokens), None)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        with self._times.order:
            return self._ordered(scheduler_output)

    def _ordered(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        side = self.scheduling
        within = partial(side.statuses.within_limits, scheduler_output)
        meta = super().build_connector_meta(side.guard.always(within, scheduler_output))
        ours = side.guard.always(partial(KVTierMetadata.of, meta), None)
        if ours is None:
            return meta
        side.guard.run(partial(side.step, scheduler_output, ours), None)
        if self._forsaking and side.guard.broken:
            side.guard.always(partial(side.forsake, ours), None)
        self._forsaking = False
        side.guard.run(self._lookups.ordered, None)
        return ours

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        with self._times.answer:
            self._answered(connector_output)
        self._times.ended()

    def _answered(self, connector_output: "KVConnectorOutput") -> None:
        meta, side = connector_output.kv_connector_worker_meta, self.scheduling
        if isinstance(meta, KVTierWorkerMetadata):
            side.guard.run(partial(side.hear, meta), None)
            if meta.completed_jobs:
                side.guard.run(self._lookups.ended, None)
        side.guard.run(side.speed.output, None)
        side.guard.run(self._lookups.output, None)
        super().update_connector_output(connector_output)
        side.guard.run(self._notice, None)

    def has_pending_push_work(self) -> bool:
        side = self.scheduling
        return super().has_pending_push_work() or side.guard.run(side.unopened, False)

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        report = self._finished(request)
        return self._returned(report, *super().request_finished(request, block_ids))

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        report = self._finished(request)
        return self._returned(report, *super().request_finished_all_groups(request, block_ids))

    def take_events(self) -> "Iterable[KVCacheEvent]":
        events, side = list(super().take_events()), self.scheduling
        if not events:
            return events
        return side.guard.run(lambda: side.events.complete(events, side.ranks, side.brain), events)

    def shutdown(self) -> None:
        if self._scheduling is not None:
            self._scheduling.guard.always(self._scheduling.close, None)
        super().shutdown()

    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        super().bind_gpu_block_pool(gpu_block_pool)
        self.scheduling.watch.device.pool = gpu_block_pool

    def reset_cache(self) -> bool | None:
        side = self.scheduling
        side.guard.always(side.namespace.end, None)  # it outlives us also when we are off
        side.guard.run(lambda: side.reset(emptied=side.watch.device.empty()), None)
        return self._forget()

    def _distrust(self, request: "Request") -> None:
        """Note why a request gets no hit: ranks do not say whether the weights are the same."""
        self.scheduling.brain.refuse_load(request.request_id, Why.UNSEEN)

    def _notice(self) -> None:
        """Reset kvtier, as a user would, where the weights were changed in place."""
        side = self.scheduling
        if change := side.watch.looks.take_change():
            self._forsaking = True
            logger.warning("kvtier: %s", change)
            side.namespace.end(waits=False)
            side.reset(emptied=change.emptied, noticed=True)
            self._forget()

    def _forget(self) -> bool | None:
        """Reset vLLM's half."""
        side, nothing = self.scheduling, set[int]()
        self._forsaking = True
        # vLLM asserts that no flush is due, but after another reset since the last step there is one
        due = side.guard.always(side.statuses.take_flushes, nothing)
        done = super().reset_cache()
        side.guard.run(self._lookups.ended, None)
        side.guard.always(partial(side.statuses.give_flushes, due), None)
        return done

    def _cancel(self, request: "Request") -> None:
        side = self.scheduling
        side.guard.run(partial(side.cancel, request.request_id), None)

    def _finished(self, request: "Request") -> dict[str, object] | None:
        """Note that a request is over, and give the report that it asked for."""
        self._cancel(request)
        side = self.scheduling
        side.guard.run(partial(self._lookups.forget, request.request_id), None)
        side.guard.run(partial(side.finished, request), None)
        report = side.guard.always(partial(side.prompts.finished, request.request_id), None)
        if report:
            side.guard.always(partial(start.say_report, request, report), None)
        return report

    def _returned(
        self, report: dict[str, object] | None, later: bool, found: dict[str, Any] | None
    ) -> tuple[bool, dict[str, Any] | None]:
        side = self.scheduling
        return later, side.guard.always(partial(side.returns.of, found, report), None)

    # Workers

    def register_kv_caches(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        self.rank.learn(kv_caches)
        super().register_kv_caches(kv_caches)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        # A reset is honoured also when we are off.
        self.rank.guard.always(partial(self.rank.before, kv_connector_metadata), None)
        super().handle_preemptions(kv_connector_metadata)
        self.rank.guard.always(self.rank.after, None)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self.rank.guard.always(partial(self.rank.order, connector_metadata), None)
        self.rank.guard.run(partial(self.rank.launching, connector_metadata), None)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        self.rank.guard.always(self.rank.order_rest, None)
        super().start_load_kv(forward_context, **kwargs)
        self.rank.guard.run(self.rank.launched, None)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        nobody: dict[int, str] = {}
        # A copy: vLLM forgets them as it collects them.
        loads = self.rank.guard.always(lambda: dict(self.rank.loads), nobody)
        sent, received = self.get_finished(finished_req_ids)
        failed = partial(self.rank.failed_requests, loads, received)
        return KVConnectorTransferResults(
            finished_sending=set(sent),
            finished_recving=set(received),
            failed_recving=self.rank.guard.run(failed, set(received)),
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        nothing: set[int] = set()
        return self.rank.guard.always(self.rank.invalid_blocks, nothing)

    def build_connector_worker_meta(self) -> OffloadingWorkerMetadata | None:
        base, guard = super().build_connector_worker_meta(), self.rank.guard
        told = guard.always(partial(self.rank.report, base), None)
        if told is None and guard.broken:
            off = partial(KVTierWorkerMetadata.of, base, broken=guard.broken)
            return guard.always(off, base)
        return told

    # API server

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Summary:
        return Summary() if data is None else Summary(data=data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: "dict[type[PromMetric], type[PromMetricT]]",
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> "KVConnectorPromMetrics":
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        settings.name_spec(transfer.kv_connector_extra_config)
        return super().build_prom_metrics(
            vllm_config, metric_types, labelnames, per_engine_labelvalues
        )
