"""vLLM's half of EngineCore does in a step what changed, and decides as it always did."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from hypothesis import given
from hypothesis import strategies as st
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
    RequestOffloadState,
)
from vllm.v1.kv_offload.base import ReqContext

from kvtier.connectors.vllm import increments
from kvtier.connectors.vllm.guard import Guard
from tests.connectors import scheduler
from tests.connectors.scheduler import Traffic

SMALL: dict[str, Any] = {
    "blocks": 600,
    "chunk_tokens": 32,
    "slots": 150,
    "batched_tokens": 512,
    "max_seqs": 64,
}


def test_this_vllm_is_known() -> None:
    assert increments.fingerprint() in increments.READ


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.booleans(),
)
def test_the_keys_are_those_that_vllm_finds(
    growth: list[int], per_chunk: list[int], at_once: bool
) -> None:
    def state(kind: type) -> Any:
        groups = [
            SimpleNamespace(group_idx=i, hashes_per_chunk=n, tokens_per_chunk=16 * n)
            for i, n in enumerate(per_chunk)
        ]
        request: Any = SimpleNamespace(
            block_hashes=[], kv_transfer_params=None, request_id="a", num_prompt_tokens=0
        )
        config: Any = SimpleNamespace(kv_group_configs=groups)
        made = RequestOffloadState(config, request, ReqContext(req_id="a"), None)
        made.__class__ = kind
        return made

    assert increments._ENDS_ARE_A_DICT, "of this vLLM"
    increments._ENDS_ARE_A_DICT = at_once
    theirs, ours = state(RequestOffloadState), state(increments.IncrementalState)
    for n in growth:
        for each in (theirs, ours):
            hashes = each.req.block_hashes
            hashes += [b"%032d" % (len(hashes) + i) for i in range(n)]
            each.update_offload_keys()
        keys = [group.offload_keys for group in ours.group_states]
        assert keys == [group.offload_keys for group in theirs.group_states]
        for key in (key for each in keys for key in each):
            end = ours.req_context.get_offload_key_position(key)
            assert end == theirs.req_context.get_offload_key_position(key)
    increments._ENDS_ARE_A_DICT = True


class Walked(list[bytes]):
    """A request's block hashes, that count how many of them are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[bytes]:
        Walked.seen += len(self)
        return super().__iter__()

    def __getitem__(self, i: Any) -> Any:
        found = super().__getitem__(i)
        Walked.seen += len(found) if isinstance(i, slice) else 0
        return found


def test_a_step_looks_at_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scheduler.engine(blocks=4000, slots=2000)
    requests = [engine.add(f"r{i}", 1000 + 8 * i) for i in range(32)]
    engine.settle()
    looked: list[str] = []
    storable = RequestOffloadState.storable_chunks

    def watch(self: Any, *args: Any) -> int:
        looked.append(self.req.request_id)
        return int(storable(self, *args))

    monkeypatch.setattr(RequestOffloadState, "storable_chunks", watch)
    for request in requests:
        request.block_hashes = Walked(request.block_hashes)
    Walked.seen, chunks = 0, engine.connector.scheduling.brain.stats().stores
    engine.run(256)  # of each request one chunk
    engine.run(2)
    assert Walked.seen <= 32 * 2 * 16, "blocks that were there before are looked at again"
    assert len(looked) <= 5 * 33, "requests with nothing to store are looked at"
    assert engine.connector.scheduling.brain.stats().stores - chunks >= 32
    near = engine.scheduler.connector.connector_scheduler._unstored
    assert len(near) <= 8, "requests far from the end of a chunk are looked at"
    engine.abort([f"r{i}" for i in range(32)])
    engine.run(2)
    assert not near, "requests that are gone are remembered"


def test_what_a_reset_forgot_is_looked_at_again() -> None:
    engine = scheduler.engine(**SMALL)
    engine.add("a", 482)  # its last chunk lacks a block
    engine.settle()
    base = engine.connector.connector_scheduler
    assert not base._unstored
    base.reset_cache()
    looked = base._offering(SimpleNamespace(num_scheduled_tokens={"a": 1}, finished_req_ids=set()))
    assert looked == {"a": 1}


@pytest.mark.parametrize("window", [0, 96])
def test_a_burst_is_offered_some_in_each_step(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(increments, "_MOST_OFFERED", 20)
    engine = scheduler.engine(blocks=4000, chunk_tokens=32, slots=2000, window=window)
    for i in range(12):
        engine.add(f"r{i}", 260)
    stores = [len(list(_stores(engine))) for _ in range(6)]
    assert stores == ([12, 0, 0, 0, 0, 0] if window else [3, 3, 3, 3, 0, 0])
    for i in range(12):
        engine.add(f"s{i}", 260, max_tokens=1)
    stores = [len(list(_stores(engine))) for _ in range(2)]
    assert stores == ([12, 0] if window else [3, 9]), "who ends offers all at once"


def _stores(engine: Any) -> Iterator[str]:
    engine.step()
    return (job.req_id for job in engine.meta.store_jobs.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": 200},
        {"slots": 40},
        {"store": "prompt"},
        {"window": 96},
        {"eagle": True},
        {"window": 96, "eagle": True, "blocks": 300},
        {"tiers": [{"name": "nvme", "kind": "file", "path": "/nowhere", "capacity": "1TiB"}]},
    ],
    ids=str,
)
def test_the_same_traffic_is_decided_the_same(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for mended in (True, False):
        if not mended:
            monkeypatch.setattr(increments, "install", lambda *_: None)
        traffic = Traffic(scheduler.engine(**SMALL | options))
        traffic.run(400)
        side = traffic.engine.connector.scheduling
        assert isinstance(side.statuses._base, increments.IncrementalScheduler) is mended
        assert not side.guard.broken
        side.brain.check()
        seen.append((traffic.jobs, scheduler.counted(side.brain.stats())))
    (jobs, stats), (jobs_before, stats_before) = seen
    for step, (now, before) in enumerate(zip(jobs, jobs_before, strict=True)):
        assert now == before, step
    assert stats == stats_before
    assert stats.stores > 100
    assert stats.loads > 20


def test_what_is_not_known_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = OffloadingConnectorScheduler.__new__(OffloadingConnectorScheduler)
    with caplog.at_level(logging.WARNING):
        for broken in ("abcd", OSError("no source"), AttributeError("gone")):

            def tell(broken: Any = broken) -> str:
                if isinstance(broken, Exception):
                    raise broken
                return str(broken)

            monkeypatch.setattr(increments, "fingerprint", tell)
            increments.install(base, Guard())
            assert type(base) is OffloadingConnectorScheduler
    assert len(caplog.records) == 3


def test_where_looking_fails_vllm_does_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    engine = scheduler.engine(**SMALL)
    monkeypatch.setattr(increments.IncrementalScheduler, "_offering", fail)
    engine.add("a", 500)
    engine.run(5)
    assert "a bug" in engine.connector.scheduling.guard.broken
    assert len(engine.scheduler.running) == 1
