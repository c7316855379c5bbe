"""What vLLM makes of our classes, made here without an engine: spec, manager, metrics, messages."""

import dataclasses
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from kvtier.types import NO_SLOT, OpResult, OpStatus
from tests.compat import contract

base: Any = contract.load("vllm.v1.kv_offload.base")
config: Any = contract.load("vllm.v1.kv_offload.config")
utils: Any = contract.load("vllm.distributed.kv_transfer.kv_connector.utils")
outputs: Any = contract.load("vllm.v1.outputs")
connector: Any = contract.load("kvtier.connectors.vllm.connector")
manager: Any = contract.load("kvtier.connectors.vllm.manager")
messages: Any = contract.load("kvtier.connectors.vllm.messages")
metrics: Any = contract.load("kvtier.connectors.vllm.metrics")
spec: Any = contract.load("kvtier.connectors.vllm.spec")


def offloading_config() -> Any:
    """vLLM's configuration of one rank; every field that a release adds has to have a default."""
    return config.OffloadingConfig(
        groups=(config.OffloadingGroupConfig(16, ("layer.0",), 0),),
        worker_kv_bytes_per_block=4096,
        enable_kv_cache_events=False,
        extra_config={"offload_prompt_only": False},
        engine_id="engine",
        model=config.OffloadingModelConfig(name="model", dtype="float32"),
        cache=config.OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=2),
        parallel=config.OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True),
    )


def test_the_spec_has_what_the_scheduler_reads() -> None:
    made = spec.KVTierSpec(offloading_config())
    assert (made.offload_prompt_only, made.blocks_per_chunk, made.tokens_per_hash) == (False, 2, 16)
    assert isinstance(made.get_manager(), base.OffloadingManager)


def test_a_manager_without_ranks_is_an_empty_cache() -> None:
    made = spec.KVTierSpec(offloading_config()).get_manager()
    context = base.ReqContext(req_id="request")
    key = base.make_offload_key(b"hash", 0)
    with getattr(made, "lock", nullcontext()):  # from 0.33 on
        assert made.on_new_request(context).policy == base.OffloadPolicy.REQUEST_LEVEL
        assert made.lookup(key, context) is base.LookupResult.MISS
        assert made.prepare_store([key], context) is None, "it is offered again"
        made.on_schedule_end(base.ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))
        made.on_request_finished(context)
        assert not made.has_pending_work()
        assert not list(made.take_events())
        assert made.get_stats() is None
        made.reset_cache()
    made.shutdown()


@pytest.fixture
def registered() -> Iterator[None]:
    """Take back what is registered with Prometheus, which is one for the whole process."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def test_prometheus_takes_every_metric(registered: None) -> None:
    extra: dict[str, Any] = {}
    transfer = SimpleNamespace(kv_connector_extra_config=extra)
    prom = connector.KVTierConnector.build_prom_metrics(
        SimpleNamespace(kv_transfer_config=transfer),
        {Gauge: Gauge, Counter: Counter, Histogram: Histogram},
        ["engine"],
        {0: ["0"]},
    )
    stats = metrics._new_stats()
    for name, declared in metrics.definitions().items():
        labels = tuple("x" for _ in declared.labelnames)
        if isinstance(declared, base.OffloadingHistogramMetadata):
            metrics._observe(stats, name, [1.0], labels)
        elif isinstance(declared, base.OffloadingCounterMetadata):
            stats.increase_counter(name, 1, labels)
        else:
            stats.set_gauge(name, 1, labels)
    prom.observe(pickle.loads(pickle.dumps(stats)).data, 0)
    shown = {family.name for family in REGISTRY.collect()}
    assert set(metrics.definitions()) <= shown


def test_messages_travel() -> None:
    slots = messages.SlotSpec(1, ((0, NO_SLOT), ()))
    copy = pickle.loads(pickle.dumps(slots))
    assert (copy.plan, copy.slots) == (slots.plan, slots.slots)
    for cls in (messages.KVTierMetadata, messages.KVTierWorkerMetadata):
        required: dict[str, object] = {
            field.name: {}
            for field in dataclasses.fields(cls)
            if field.default is field.default_factory is dataclasses.MISSING
        }
        made = cls(**required)
        assert pickle.loads(pickle.dumps(made)) == made


def test_the_answers_of_all_ranks_arrive() -> None:
    def rank(meta: object) -> Any:
        ended = outputs.KVConnectorOutput(kv_connector_worker_meta=meta)
        return outputs.ModelRunnerOutput(req_ids=[], req_id_to_index={}, kv_connector_output=ended)

    metas = [
        messages.KVTierWorkerMetadata(
            completed_jobs={7: 1}, results=[OpResult(at, 1, OpStatus.OK)], failed={7: {at}}
        )
        for at in range(3)
    ]
    aggregator = utils.KVOutputAggregator(expected_finished_count=4)
    merged = aggregator.aggregate([rank(None), *map(rank, metas)])
    found = merged.kv_connector_output.kv_connector_worker_meta
    assert isinstance(found, messages.KVTierWorkerMetadata)
    assert sorted(result.rank for result in found.results) == [0, 1, 2]
    assert (found.completed_jobs, found.failed) == ({7: 3}, {7: {0, 1, 2}})
