"""The ranks say hello in the first steps: late, twice, as others, after a reset or never; and who came before is not lost."""

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher, UniProcExecutor
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key

from kvtier.config import load
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.ranks import Hello
from kvtier.connectors.vllm.roll_call import RollCall, refuse_lone_ranks, steps_in_flight
from kvtier.errors import ConfigError
from kvtier.types import OpKind
from tests.connectors import halves
from tests.connectors.test_overwrites import output
from tests.patience import until

ZERO, ONE = halves.hello(8), halves.hello(6, rank=1)


class Engine:
    """vLLM around EngineCore's half of an engine of two ranks."""

    def __init__(self, world_size: int = 2, **more: Any) -> None:
        self.side = halves.unheard(world_size, use_v2_model_runner=False, **more)
        self.manager = self.side._manager
        self.table: dict[str, Any] = self.side.statuses._base._req_status

    def step(self, *hellos: Hello, **more: Any) -> KVTierMetadata:
        """One step and its answer."""
        meta = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=None)
        self.side.guard.run(lambda: self.side.step(output(), meta), None)
        said = KVTierWorkerMetadata(hellos=list(hellos), **more)
        self.side.guard.run(lambda: self.side.hear(said), None)
        return meta

    def arrive(self, name: str, status: str = "RUNNING", **hints: object) -> Any:
        key = make_offload_key(name.encode().ljust(32), 0)
        self.table[name] = SimpleNamespace(
            update_offload_keys=lambda: None,
            group_states=[SimpleNamespace(offload_keys=[key], next_stored_chunk_idx=0)],
            req=SimpleNamespace(num_computed_tokens=0, mm_features=[]),
            transfer_jobs=set(),
        )
        request = SimpleNamespace(
            request_id=name,
            kv_transfer_params={"kvtier": hints},
            lora_request=None,
            mm_features=[],
            skip_reading_prefix_cache=False,
            status=SimpleNamespace(name=status),
        )
        self.side.guard.run(lambda: self.side.arrive(request), None)
        return request

    def offer(self, name: str) -> int | None:
        """Offer a request's chunk; None: offer it again."""
        keys = self.table[name].group_states[0].offload_keys
        out = self.manager.prepare_store(keys, ReqContext(req_id=name))
        return None if out is None else len(list(out.keys_to_store))


@pytest.fixture(autouse=True)
def manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "manifest", lambda *_: '{"epoch": ""}')


def test_until_all_have_spoken_the_cache_is_empty_and_asks_for_steps() -> None:
    engine = Engine()
    request = engine.arrive("a")
    key = engine.table["a"].group_states[0].offload_keys[0]
    for hello in (ZERO, ZERO):  # the other one is late
        assert engine.side.unopened()
        assert engine.side.sits_out(request)
        assert engine.manager.lookup(key, ReqContext(req_id="a")) is LookupResult.MISS
        assert engine.offer("a") is None
        assert not engine.manager.has_pending_work()
        assert engine.step(hello).greet
    engine.step(ONE)
    assert not engine.side.unopened()
    assert not engine.side.sits_out(request)
    assert engine.side.ranks.hellos == (ZERO, ONE)
    assert engine.side.ranks.slots == 6
    assert engine.offer("a") == 1
    assert not engine.step().greet
    assert not engine.side.guard.broken


def test_answers_that_were_under_way_change_nothing() -> None:
    engine = Engine()
    engine.step(ONE, ZERO)
    brain = engine.side.brain
    engine.step(ZERO, ONE)
    engine.step(pickle.loads(pickle.dumps(ZERO)))
    assert engine.side.brain is brain
    assert not engine.side.guard.broken


@pytest.mark.parametrize("opened", [False, True])
def test_a_rank_that_became_another_turns_kvtier_off(opened: bool) -> None:
    engine = Engine()
    engine.step(ZERO, *([ONE] if opened else []))
    engine.step(replace(ZERO, slots=9))
    assert "rank 0 is not the one of the start" in engine.side.guard.broken


def test_ranks_that_disagree_turn_kvtier_off_in_words(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.step(ZERO, replace(ONE, config_digest="x"))
    (line,) = caplog.records
    assert "the configuration file changed during the start" in line.message
    assert not line.exc_info
    assert "off" in str(engine.manager.get_stats())


@pytest.mark.parametrize("in_flight", [1, 3])
def test_silent_ranks_are_named_when_nobody_answered_three_times(in_flight: int) -> None:
    roll = RollCall(4, in_flight)
    roll.hear([replace(ZERO, rank=rank) for rank in (0, 2)])
    for _ in range(in_flight + 2):  # of which `in_flight` are not answered
        roll.ask()
    with pytest.raises(ConfigError, match=r"ranks 1, 3 of 4 have not said hello in 3 steps"):
        roll.ask()


def test_with_a_silent_rank_the_engine_goes_on_without_kvtier() -> None:
    engine = Engine()
    request = engine.arrive("a")
    asked = [engine.step(ZERO).greet for _ in range(4)]
    assert asked == [True, True, True, False]
    side = engine.side
    assert "ranks 1 of 2" in side.guard.broken
    assert not side.guard.run(side.unopened, False)
    assert not side.guard.run(lambda: side.sits_out(request), False)
    assert engine.offer("a") == 0, "vLLM asks no more"
    stats = engine.manager.get_stats()
    assert stats is not None
    assert "kvtier:off" in str(stats.data)


def test_a_rank_that_fails_before_it_speaks_turns_kvtier_off() -> None:
    engine = Engine()
    engine.step(ZERO, broken="OSError: the device is gone")
    assert "a worker is off: OSError: the device is gone" in engine.side.guard.broken


def test_who_came_before_is_told_in_order_but_for_those_who_left() -> None:
    engine = Engine()
    for name in ("a", "b", "c"):
        engine.arrive(name, store=name != "c")
    engine.side.cancel("b")
    engine.manager.on_request_finished(ReqContext(req_id="b"))
    engine.step(ZERO, ONE)
    assert list(engine.side.brain.view.requests) == ["a", "c"]
    assert [engine.offer(name) for name in ("a", "c")] == [1, 0]
    engine.manager.on_request_finished(ReqContext(req_id="a"))
    engine.manager.on_request_finished(ReqContext(req_id="c"))
    assert not engine.manager.early
    assert not engine.side.brain.view.requests


def test_of_who_was_preempted_before_the_hello_nothing_is_stored_until_it_runs_again() -> None:
    engine = Engine()
    engine.arrive("a", status="PREEMPTED")
    engine.arrive("b")
    engine.step(ZERO, ONE)
    assert (engine.offer("a"), engine.offer("b")) == (0, 1)


def test_who_loads_nothing_does_not_wait_and_is_stored_all_the_same() -> None:
    engine = Engine()
    request = engine.arrive("a")
    request.skip_reading_prefix_cache = True
    assert not engine.side.sits_out(request)
    assert engine.offer("a") is None
    engine.step(ZERO, ONE)
    assert engine.offer("a") == 1


@pytest.mark.parametrize("emptied", [False, True])
def test_a_reset_before_the_hello_is_carried_out_with_it(tmp_path: Path, emptied: bool) -> None:
    tiers = [
        {"kind": "dram", "capacity": "1MiB"},
        {"name": "nvme", "kind": "file", "path": str(tmp_path), "capacity": "1GiB"},
    ]
    config = load({"tiers": tiers})
    engine = Engine(config=config)
    engine.arrive("a")
    engine.table["a"].req.num_computed_tokens = 32  # of the old weights
    engine.side.namespace.end()
    engine.side.reset(emptied=emptied)
    engine.arrive("b")
    engine.step(*(halves.hello(8, rank=rank, config=config) for rank in (0, 1)))
    assert not engine.side.guard.broken
    opened, begun = engine.step().ops
    assert (opened.kind, begun.kind) == (OpKind.OPEN, OpKind.RESET)
    assert opened.text != begun.text
    assert [engine.offer("a"), engine.offer("b")] == [0, int(emptied)]
    until(lambda: len(list(tmp_path.glob(".epoch-*"))) == 1, "it is noted")


def test_a_hello_survives_answers_of_all_kinds() -> None:
    one, other = KVTierWorkerMetadata(hellos=[ZERO]), KVTierWorkerMetadata(hellos=[ONE])
    assert one.aggregate(other).hellos == [ZERO, ONE]
    assert one.aggregate(OffloadingWorkerMetadata(completed_jobs={1: 1})).hellos == [ZERO]


def test_a_rank_answers_every_question_with_the_same_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = halves.worker(SimpleNamespace(launched=lambda: None))
    worker.io, worker.placed = None, list  # type: ignore[method-assign]
    rank = halves.rank(worker)
    described = iter((ZERO, ONE))
    rank._hello = None
    monkeypatch.setattr(rank, "_describe", lambda: next(described))
    said = []
    for greet in (True, True, False):
        rank.before(KVTierMetadata({}, {}, None, greet=greet))
        told = rank.report(None)
        said.append(told.hellos if told else [])
    assert said == [[ZERO], [ZERO], []]


def test_handshakes_of_others_and_repeated_ones_are_ignored() -> None:
    """MultiConnector gives every connector the first one's; from 0.33 on vLLM repeats them at each wake-up."""
    made: Any = object.__new__(KVTierConnector)
    made._scheduling = halves.scheduling()
    brain = made.scheduling.brain
    for metadata in ({(0, 0): object()}, {(1, 0): object()}, {}):
        made.set_xfer_handshake_metadata_pp_aware(metadata)
    assert made.scheduling.brain is brain
    assert not made.scheduling.guard.broken
    assert made.get_handshake_metadata() is None


def test_steps_in_flight_are_those_of_the_scheduler() -> None:
    parallel = SimpleNamespace(pipeline_parallel_size=4)
    with_it: Any = SimpleNamespace(parallel_config=parallel, max_concurrent_batches=2)
    assert steps_in_flight(with_it) == 2
    without: Any = SimpleNamespace(parallel_config=parallel)
    assert steps_in_flight(without) == 5


def test_what_another_release_lacks_turns_kvtier_off_at_the_hello() -> None:
    engine = Engine()
    del engine.side.statuses._base.config, engine.side.statuses.groups
    request = engine.arrive("a")
    engine.step(ZERO, ONE)
    assert "no attribute 'config'" in engine.side.guard.broken
    assert not engine.side.guard.run(lambda: engine.side.sits_out(request), False)
    assert engine.offer("a") == 0


class OurLauncher(ExecutorWithExternalLauncher):  # type: ignore[misc] # vLLM has no types
    """An executor that somebody derives."""


@pytest.mark.parametrize("backend", ["external_launcher", OurLauncher])
def test_ranks_that_nobody_brings_together_are_refused(backend: object) -> None:
    several: Any = SimpleNamespace(distributed_executor_backend=backend, world_size=2)
    with pytest.raises(ConfigError, match="each of the 2 ranks has an engine core of its own"):
        refuse_lone_ranks(several)
    alone: Any = SimpleNamespace(distributed_executor_backend=backend, world_size=1)
    refuse_lone_ranks(alone)


@pytest.mark.parametrize("backend", ["mp", "uni", "ray", None, UniProcExecutor])
def test_other_executors_are_not_refused(backend: object) -> None:
    several: Any = SimpleNamespace(distributed_executor_backend=backend, world_size=2)
    refuse_lone_ranks(several)
