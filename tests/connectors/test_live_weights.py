"""What EngineCore's half does about weights that were changed in place: hits wait, kvtier is reset, stores go on."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.core import EngineCore
from vllm.v1.outputs import KVConnectorOutput

from kvtier.brain import Why
from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.live import Fetch
from kvtier.connectors.vllm.looks import WAIT_S, Looked, Trust
from kvtier.connectors.vllm.lookups import Lookups
from kvtier.connectors.vllm.messages import KVTierWorkerMetadata
from kvtier.connectors.vllm.namespace import Namespace
from kvtier.connectors.vllm.scheduling import Scheduling
from kvtier.connectors.vllm.watch import Watch
from tests.brain.fake_ranks import Clock
from tests.connectors import halves
from tests.connectors.test_scheduling import Engine, refusals

REQUEST: Any = SimpleNamespace(request_id="a", kv_transfer_params=None)
HIT = (64, True)


class Rig:
    """EngineCore's half around one that hits, and a rank that looks when it is told to."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.side: Scheduling = self.engine.side
        self.clock = Clock()
        self.side.watch.looks._clock = self.clock
        self.resets = 0
        made = self.connector = object.__new__(KVTierConnector)
        made._scheduling, made._forsaking = self.side, False
        made._lookups = Lookups()
        self.side.statuses.shares_load = lambda *_: False  # type: ignore[method-assign] # nobody loads
        made._bounding_group_ids = ()
        made.connector_scheduler = SimpleNamespace(
            get_num_new_matched_tokens=lambda *_, **__: HIT,
            update_connector_output=lambda _: None,
            reset_cache=self.reset,
        )
        self.side.statuses._base._current_batch_jobs_to_flush = set()
        self.side.fetch = lambda *_: Fetch.PINNED  # type: ignore[method-assign] # its hit is in DRAM
        self.answer(1, b"old")  # of the step that the engine made
        self.side.watch.looks.suspect()

    def reset(self) -> None:
        self.resets += 1

    def answer(self, look: int, seen: bytes) -> None:
        """Let the rank say what it saw."""
        meta = KVTierWorkerMetadata()
        meta.looked = [Looked(0, look, seen)]
        self.connector.update_connector_output(KVConnectorOutput(kv_connector_worker_meta=meta))

    def ask(self) -> tuple[int | None, bool]:
        return self.connector.get_num_new_matched_tokens(REQUEST, 0)

    def look(self, seen: bytes) -> None:
        """Make a step that computes nothing, and that looks."""
        self.answer(self.side.watch.looks.order(computes=False), seen)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(Namespace, "fresh", lambda self: "{}")
    return Rig()


def core(**executor: object) -> Any:
    made = EngineCore.__new__(EngineCore)
    made.model_executor = SimpleNamespace(collective_rpc=lambda *_, **__: ["done"])
    made.scheduler = SimpleNamespace(**executor)
    return made


def test_a_hit_waits_for_one_look_and_not_for_the_next(rig: Rig) -> None:
    assert rig.ask() == (None, False)
    rig.look(b"old")
    assert rig.ask() == HIT == rig.ask()
    assert not rig.resets


def test_after_a_call_of_the_workers_a_hit_waits_and_a_change_resets_everything(rig: Rig) -> None:
    rig.ask()
    rig.look(b"old")
    assert core().collective_rpc("update_weights") == ["done"]
    assert rig.ask() == (None, False)
    rig.look(b"new")
    stats = rig.side.brain.stats()
    assert (rig.resets, stats.resets, stats.weight_changes) == (1, 1, 1)
    assert rig.ask() == HIT
    assert rig.engine.store(rig.engine.arrive("b", 1)) == 0, "the device's cache was not reset"
    assert not core(reset_prefix_cache=lambda *_: False).reset_prefix_cache()
    assert rig.engine.store(rig.engine.arrive("c", 1)) == 0, "nor was it now"
    assert core(reset_prefix_cache=lambda *_: True).reset_prefix_cache()
    assert rig.engine.store(rig.engine.arrive("d", 1)) == 1


def test_a_call_that_fails_may_have_changed_weights_all_the_same(rig: Rig) -> None:
    rig.ask()
    rig.look(b"old")
    broken = core()
    broken.model_executor = SimpleNamespace()
    with pytest.raises(AttributeError):
        broken.collective_rpc("update_weights")
    assert rig.ask() == (None, False)


def test_who_waits_in_vain_computes_and_is_counted(rig: Rig) -> None:
    rig.engine.arrive("a", 2)
    assert rig.ask() == (None, False)
    assert rig.side.watch.looks.order(computes=False)
    rig.clock.now += WAIT_S + 1
    assert rig.ask() == (0, False)
    assert refusals(rig.engine)[0] == {Why.UNSEEN: 1}


def test_a_reset_that_vllm_refuses_turns_kvtier_off_and_nothing_raises(rig: Rig) -> None:
    def refuse() -> None:
        raise AssertionError("in the middle of a schedule")

    rig.connector.connector_scheduler.reset_cache = refuse
    rig.ask()
    rig.look(b"new")
    assert rig.side.guard.broken
    assert rig.connector._forsaking, "the ranks are told"


def test_listeners_end_with_their_engine(rig: Rig) -> None:
    from kvtier.connectors.vllm import core_calls

    halves.scheduling()
    core().collective_rpc("profile")
    alive = [ref() for ref in core_calls._listeners["collective_rpc"]]
    assert None not in alive


def test_no_hit_waits_for_ever_where_calls_come_faster_than_answers() -> None:
    clock = Clock()
    watch = Watch(1, clock=clock)

    def step(request: str) -> Trust:
        """Call the workers, ask for a hit, and look."""
        watch.looks.suspect()
        trust = watch.trust(request)
        watch.looks.heard([Looked(0, watch.looks.order(computes=True), b"the same")])
        clock.now += 0.25
        return trust

    for request in ("first", "next"):
        waits = [step(request) for _ in range(22)]
        assert waits == [Trust.WAIT] * 21 + [Trust.NO]
    assert step("aborted") is Trust.WAIT
    watch.departed("aborted")
    assert step("aborted") is Trust.WAIT
    assert watch.trust("aborted") is Trust.YES, "nobody called since"
    watch.departed("first")
    watch.departed("next")
    assert not watch._waiting
