"""One record per live request: what it may store and load, what lacked room, what is read for it, and its end."""

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import GPULoadStoreSpec, LookupResult, ReqContext, make_offload_key
from vllm.v1.request import RequestStatus

from kvtier.brain import CacheView, ReadPlan, Why
from kvtier.config import load
from kvtier.connectors.vllm import identity, start
from kvtier.connectors.vllm.live import Fetch
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.scheduling import Scheduling
from kvtier.types import BlockKey, OpKind
from tests.connectors import halves
from tests.connectors.test_overwrites import output

SLOTS, TOKENS = 4, 32


class Engine:
    """vLLM around the scheduling side: its table of requests, and jobs that one rank carries out."""

    def __init__(self) -> None:
        self.side: Scheduling = halves.scheduling(use_v2_model_runner=False)
        self.manager = self.side._manager
        self.table: dict[str, Any] = self.side.statuses._base._req_status
        self.jobs = 0
        self.skip_reading = False  # of the requests that arrive
        self.params: dict[str, Any] = {}
        self.media: list[Any] = []
        self.step()

    def keys(self, name: str, chunks: int) -> list[bytes]:
        return [make_offload_key(f"{name}{i}".encode().ljust(32), 0) for i in range(chunks)]

    def arrive(
        self, name: str, chunks: int, *, keys: str = "", lora: object = None, **hints: object
    ) -> ReqContext:
        """Let a request come, whose chunks have keys of its own or the ones called `keys`."""
        found = self.keys(keys or name, chunks)
        ends = {key: (i + 1) * TOKENS for i, key in enumerate(found)}
        self.table[name] = SimpleNamespace(
            update_offload_keys=lambda: None,
            group_states=[SimpleNamespace(offload_keys=found, next_stored_chunk_idx=0)],
            req_context=SimpleNamespace(get_offload_key_position=ends.get),
            req=SimpleNamespace(num_computed_tokens=0, mm_features=self.media),
            transfer_jobs=set(),
        )
        request: Any = SimpleNamespace(
            request_id=name,
            kv_transfer_params={"kvtier": hints, **self.params},
            lora_request=lora,
            mm_features=self.media,
            skip_reading_prefix_cache=self.skip_reading,
            status=SimpleNamespace(name="RUNNING"),
        )
        self.side.guard.run(lambda: self.side.arrive(request), None)
        return ReqContext(req_id=name)

    def store(self, context: ReqContext) -> int:
        """Offer every chunk; return how many are stored."""
        state = self.table[context.req_id].group_states[0]
        offered = state.offload_keys[state.next_stored_chunk_idx :]
        out = self.manager.prepare_store(offered, context)
        assert out is not None
        state.next_stored_chunk_idx = len(state.offload_keys)
        blocks = GPULoadStoreSpec([], group_sizes=[0], block_indices=[0])
        job = SimpleNamespace(src_spec=blocks, dst_spec=out.store_spec)
        self.step(job if out.keys_to_store else None, computes=context.req_id)
        return len(out.keys_to_store)

    def step(self, store: object = None, *, computes: str = "") -> None:
        jobs: dict[int, Any] = {}
        if store is not None:
            self.jobs += 1
            jobs[self.jobs] = store
        meta = KVTierMetadata(load_jobs={}, store_jobs=jobs, jobs_to_flush=None)
        scheduled = output(
            total_num_scheduled_tokens=1, num_scheduled_tokens={computes: 1} if computes else {}
        )
        self.side.guard.run(lambda: self.side.step(scheduled, meta), None)
        told = self.answer(meta)
        told.completed_jobs = dict.fromkeys(jobs, 1)
        self.side.hear(told)

    def answer(self, meta: KVTierMetadata) -> KVTierWorkerMetadata:
        """Say what the ranks say besides."""
        return KVTierWorkerMetadata()

    def hit(self, key: bytes, context: ReqContext) -> bool:
        return self.manager.lookup(key, context) is LookupResult.HIT

    def next_offered(self, name: str) -> int:
        return int(self.table[name].group_states[0].next_stored_chunk_idx)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(halves, "hello", lambda slots, **more: HELLO(SLOTS, **more))
    return Engine()


HELLO = halves.hello


def test_what_is_stored_is_found_by_all_and_by_hints_not_used(engine: Engine) -> None:
    first = engine.arrive("a", 2)
    key = engine.keys("a", 2)[1]
    assert not engine.hit(key, first)
    assert engine.store(first) == 2
    assert engine.hit(key, first)
    assert not engine.hit(key, engine.arrive("b", 1, load=False))
    assert not engine.side.guard.broken


def test_by_hint_nothing_is_stored(engine: Engine) -> None:
    assert engine.store(engine.arrive("a", 2, store=False)) == 0
    assert engine.store(engine.arrive("b", 2)) == 2


def test_chunks_that_came_since_are_told_before_they_are_stored(engine: Engine) -> None:
    context = engine.arrive("a", 1)
    assert engine.store(context) == 1
    engine.table["a"].group_states[0].offload_keys += engine.keys("a", 3)[1:]
    assert engine.store(context) == 2
    assert engine.side._live["a"].told == [3]


def test_what_lacked_room_is_offered_again_while_its_request_lives(engine: Engine) -> None:
    context = engine.arrive("a", SLOTS + 2)
    assert engine.store(context) == SLOTS
    assert engine.next_offered("a") == SLOTS
    assert not engine.side._crowded_out
    out = engine.manager.prepare_store(engine.keys("a", SLOTS + 2), context)
    assert out is not None
    engine.table["a"].group_states[0].next_stored_chunk_idx = SLOTS + 2
    engine.manager.on_request_finished(context)
    engine.step()
    assert engine.next_offered("a") == SLOTS + 2
    assert not engine.side.guard.broken


def test_reads_are_waited_for_and_their_source_is_known(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = engine.arrive("a", 2)
    request: Any = SimpleNamespace(request_id="a")
    keys = tuple(BlockKey(key) for key in engine.keys("a", 2))
    ready = False
    monkeypatch.setattr(engine.side.statuses, "needed", lambda *_: list(keys))
    monkeypatch.setattr(engine.side.brain, "plan_read", lambda *_: ReadPlan(1, keys[:1]))
    monkeypatch.setattr(CacheView, "coming", lambda *_: {keys[0]: 1})
    monkeypatch.setattr(engine.side.brain, "ready", lambda _: ready)
    assert not engine.side.reading(request, 0)
    assert engine.side.fetch(request, 0, 2 * TOKENS) is Fetch.READING
    assert engine.side.reading(request, 0)
    assert engine.side.source(keys[0], "a") == 1
    assert engine.side.source(keys[1], "a") == 0
    ready = True
    assert not engine.side.reading(request, 0)
    ready = False
    assert not engine.side.reading(request, 0), "what has landed is not asked for again"
    ends: list[Callable[[], None]] = [
        partial(engine.side.cancel, "a"),
        partial(engine.side.reset, emptied=True),
    ]
    for end in ends:
        assert engine.side.fetch(request, 0, 2 * TOKENS) is Fetch.READING
        end()
        assert not engine.side.reading(request, 0)
    engine.manager.on_request_finished(context)
    assert engine.side.source(keys[0], "a") == 0


def test_nothing_is_left_of_a_request(engine: Engine) -> None:
    for name in ("a", "b"):
        context = engine.arrive(name, 2)
        engine.store(context)
        engine.manager.on_request_finished(context)
    side = engine.side
    assert (side._live, side._crowded_out) == ({}, [])
    assert (side._jobs.planned, side._jobs.live) == ({}, {})
    side.brain.check()


def test_after_a_reset_that_emptied_nothing_nothing_is_stored(engine: Engine) -> None:
    engine.side.reset(emptied=False)
    assert engine.store(engine.arrive("a", 1)) == 0
    engine.side.reset(emptied=True)
    assert engine.store(engine.arrive("b", 1)) == 1


def refusals(engine: Engine) -> tuple[dict[Why, int], dict[Why, int]]:
    stats = engine.side.brain.stats()
    return dict(stats.load_refusals), dict(stats.store_refusals)


def test_what_a_hint_forbids_is_counted_as_such(engine: Engine) -> None:
    engine.store(engine.arrive("a", 2))
    engine.arrive("b", 2, load=False)
    engine.store(engine.arrive("c", 2, store=False))
    assert refusals(engine) == ({Why.HINT: 1}, {Why.HINT: 2})


def test_what_is_keyed_by_a_name_that_does_not_last_never_leaves_dram(engine: Engine) -> None:
    def persists(name: str) -> bool:
        return engine.side.brain.view.requests[name].persist

    engine.media = [SimpleNamespace(identifier="a" * 64)]
    engine.store(engine.arrive("a", 2))
    assert persists("a")
    engine.media = [SimpleNamespace(identifier="renderer0-mm-1-image-0")]
    engine.arrive("b", 2)
    assert not persists("b")
    engine.media = []
    streamed = engine.arrive("c", 2)
    assert persists("c")
    engine.media.append(SimpleNamespace(identifier="my-photo"))
    engine.table["c"].group_states[0].offload_keys += engine.keys("more", 1)
    engine.store(streamed)
    assert not persists("c")


def test_after_a_reset_that_is_carried_out_with_kvtier_off_nothing_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiers = [
        {"kind": "dram", "capacity": "1MiB"},
        {"name": "nvme", "kind": "file", "path": str(tmp_path / "kv"), "capacity": "1GiB"},
    ]
    side = halves.scheduling(config=load({"tiers": tiers}))

    def too_many_files(*_: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(identity, "manifest", too_many_files)
    meta = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=None)
    side.forsake(meta)
    (op,) = meta.ops
    assert (op.kind, op.tier) == (OpKind.RESET, 1)
    told = json.loads(op.text)
    assert told["model"] == "test"
    assert told["epoch"]


def test_nothing_is_read_ahead_of_a_request_that_does_not_load(engine: Engine) -> None:
    def reads(name: str, **hints: Any) -> bool:
        engine.arrive(name, 2, **hints)
        return engine.side.brain.view.requests[name].reads

    assert reads("a")
    assert not reads("b", load=False)
    engine.skip_reading = True  # prompt_logprobs, and pooling that wants every token
    assert not reads("c")


def test_what_a_request_s_tier_filter_forbids_is_counted_once(engine: Engine) -> None:
    engine.store(engine.arrive("a", 2))
    engine.arrive("a2", 2)
    filtered: Any = SimpleNamespace(
        req_id="a2", load_tier_filter=SimpleNamespace(allows=lambda *_: False)
    )
    for key in engine.keys("a", 2):
        assert not engine.hit(key, filtered)
    assert refusals(engine) == ({Why.TIER_FILTER: 1}, {})


def test_a_reset_that_emptied_nothing_is_the_reason_for_storing_nothing(engine: Engine) -> None:
    engine.side.reset(emptied=False)
    engine.store(engine.arrive("a", 3))
    assert refusals(engine) == ({}, {Why.STALE: 3})


def test_each_request_s_shortfall_is_named_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(start.logger, "debug", lambda text, *args: said.append(text % args))
    request: Any = SimpleNamespace(request_id="a", num_prompt_tokens=100, kv_transfer_params=None)
    context = engine.arrive("a", 3)
    engine.side.asked(request, 0)
    for _ in range(2):
        engine.side.scheduled(request, 0)
    assert said == ["kvtier: request a: 0 of 100 tokens from kvtier: no tier holds it"]
    engine.store(context)
    engine.side.preempted(["a"])
    engine.side.asked(request, TOKENS)
    engine.side.scheduled(request, 2 * TOKENS)
    assert said[1:] == ["kvtier: request a: 64 of 100 tokens from kvtier"]
    assert refusals(engine) == ({Why.ABSENT: 1}, {})


def test_whom_a_reset_preempted_sits_out_the_step_that_announces_it(engine: Engine) -> None:
    request: Any = SimpleNamespace(
        request_id="a", num_prompt_tokens=100, status=RequestStatus.RUNNING
    )
    engine.arrive("a", 2)
    assert not engine.side.sits_out(request)
    engine.side.scheduled(request, 0)
    assert not engine.side.sits_out(request)
    request.status = RequestStatus.PREEMPTED
    assert engine.side.sits_out(request)
    assert not engine.side.sits_out(request), "whatever is announced, it never waits for ever"
    engine.side.scheduled(request, 0)
    engine.side.preempted(["a"])
    assert not engine.side.sits_out(request)


@pytest.mark.parametrize("params", ["boo", 7, ["kvtier"]])
def test_what_is_no_mapping_never_reaches_vllm(engine: Engine, params: object) -> None:
    request: Any = SimpleNamespace(kv_transfer_params=params)
    engine.side.admit(request)
    assert request.kv_transfer_params is None
    request.kv_transfer_params = {"kvtier": {}}
    engine.side.admit(request)
    assert request.kv_transfer_params == {"kvtier": {}}


def test_who_comes_while_kvtier_is_off_is_counted(engine: Engine) -> None:
    engine.side.guard.trip("a test")
    meter = engine.side.meter
    meter.refuse()
    meter.refuse()
    told = engine.manager.get_stats()
    assert told is not None
    assert told.data["data"]["kvtier:load_refusals"] == {("off",): 2}
    assert engine.manager.get_stats() is None


def test_what_another_connector_is_to_fetch_is_neither_loaded_nor_read_ahead(
    engine: Engine,
) -> None:
    """A prefill that another engine has done: its KV is longer than any hit, and waits there."""
    engine.store(engine.arrive("a", 2))
    (key, _) = engine.keys("a", 2)
    context = engine.arrive("b", 2, keys="a")
    request: Any = SimpleNamespace(
        request_id="b", kv_transfer_params={"do_remote_prefill": True, "kvtier": {}}
    )
    engine.side.asked(request, 0)
    assert not engine.hit(key, context)
    request.kv_transfer_params["do_remote_prefill"] = False  # it was fetched, and is lost since
    engine.side.asked(request, 0)
    assert engine.hit(key, context)
    engine.params = {"do_remote_prefill": True}
    engine.arrive("c", 2)
    assert not engine.side.brain.view.requests["c"].reads
