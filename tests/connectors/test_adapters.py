"""Chunks of an adapter are of one content: whoever computes with another neither stores nor hits, until the next reset."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.core import EngineCore

from kvtier.brain import Why
from kvtier.connectors.vllm import adapters
from kvtier.connectors.vllm.adapters import Loaded
from kvtier.connectors.vllm.looks import Looked, Trust
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.watch import Watch
from tests.connectors import test_scheduling
from tests.connectors.test_scheduling import refusals

OLD, NEW = b"old", b"new"


class Engine(test_scheduling.Engine):
    """One whose rank has adapters: it reads them when a request runs, or when it is told to."""

    def __init__(self) -> None:
        self.files = {"/a": OLD, "/b": b"other"}
        self.loaded: dict[int, bytes] = {}
        self.paths: dict[int, str] = {}
        self.told: dict[int, bytes] = {}
        super().__init__()

    def answer(self, meta: KVTierMetadata) -> KVTierWorkerMetadata:
        told = KVTierWorkerMetadata()
        for number, path in meta.check.items():
            if self.loaded.get(number) != self.files[path]:
                self.loaded[number] = b""
        if meta.look or self.loaded != self.told:
            look = meta.look or self.side.watch.looks.answered
            told.loaded = [Loaded(0, look, dict(self.loaded))]
            self.told = dict(self.loaded)
        told.looked = [Looked(0, meta.look, b"weights")] if meta.look else []
        return told

    def ask(self, request: str, adapter: Any = None, chunks: int = 2) -> tuple[int, int]:
        """Let a request run to its end: how many chunks it hits, and how many it stores."""
        keys = f"adapter {adapter.lora_path}" if adapter else "base"
        context = self.arrive(request, chunks, keys=keys, lora=adapter)

        def hits() -> int:
            return [self.hit(key, context) for key in self.keys(keys, chunks)].count(True)

        while hits() and self.side.watch.looks.trust() is Trust.WAIT:
            self.step()
        hit = hits()
        if adapter and (adapter.load_inplace or adapter.lora_int_id not in self.loaded):
            self.loaded[adapter.lora_int_id] = self.files[adapter.lora_path]
        stored = self.store(context)
        if not stored:
            stored = self.store(context)  # what is offered again
        self.manager.on_request_finished(context)
        return hit, stored

    def load(self, adapter: Any) -> None:
        """Load an adapter, as an API server says; vLLM loads it again only in place."""
        executor = SimpleNamespace(add_lora=self._load, remove_lora=self._unload)
        core(executor).add_lora(adapter)

    def unload(self, number: int) -> None:
        core(SimpleNamespace(remove_lora=self._unload)).remove_lora(number)

    def _load(self, adapter: Any) -> bool:
        if adapter.load_inplace or adapter.lora_int_id not in self.loaded:
            self.loaded[adapter.lora_int_id] = self.files[adapter.lora_path]
        return True

    def _unload(self, number: int) -> bool:
        return self.loaded.pop(number, None) is not None


@pytest.fixture
def engine() -> Engine:
    return Engine()


def lora(name: str = "a", number: int = 1, *, path: str = "/a", in_place: bool = False) -> Any:
    return SimpleNamespace(
        lora_name=name, lora_path=path, lora_int_id=number, load_inplace=in_place
    )


def core(executor: object) -> Any:
    made = EngineCore.__new__(EngineCore)
    made.model_executor = executor
    return made


AGAIN: dict[str, Callable[["Engine"], object]] = {
    "in place": lambda engine: engine.load(lora(in_place=True)),
    "under another id": lambda engine: engine.load(lora(number=2)),
    "after it was unloaded": lambda engine: engine.unload(1),
    "after it was dropped": lambda engine: engine.loaded.clear(),
    "in place, as requests say": lambda engine: None,
}


def after(how: str) -> Any:
    return lora(number=2 if "another" in how else 1, in_place="requests" in how)


@pytest.mark.parametrize("how", AGAIN)
def test_an_adapter_that_is_read_again_with_other_weights(engine: Engine, how: str) -> None:
    assert engine.ask("first", lora()) == (0, 2)
    assert engine.ask("again", lora()) == (2, 0)
    engine.files["/a"] = NEW
    AGAIN[how](engine)
    hit, stored = engine.ask("new", after(how))
    if "dropped" in how:
        assert hit, "it is not known before vLLM reads it"
    else:
        assert (hit, stored) == (0, 0)
    assert engine.ask("next", after(how)) == (0, 0)
    assert engine.ask("base") == (0, 2)
    assert engine.ask("other", lora("b", 7, path="/b")) == (0, 2)
    loads, stores = refusals(engine)
    assert loads[Why.ADAPTER] >= 1
    assert stores[Why.ADAPTER] >= 2
    engine.side.reset(emptied=True)
    assert engine.ask("fresh", after(how)) == (0, 2)
    assert engine.ask("hit", after(how)) == (2, 0)


@pytest.mark.parametrize("how", AGAIN)
def test_an_adapter_that_is_read_again_as_it_was(engine: Engine, how: str) -> None:
    assert engine.ask("first", lora()) == (0, 2)
    AGAIN[how](engine)
    engine.ask("once", after(how))  # it may have to be loaded first
    assert engine.ask("again", after(how)) == (2, 0)


def test_an_id_that_is_used_for_another_path_computes_with_what_it_has_loaded(
    engine: Engine,
) -> None:
    assert engine.ask("a", lora()) == (0, 2)
    assert engine.ask("b", lora("b", 1, path="/b")) == (0, 2), "of the weights of a"
    assert engine.ask("b again", lora("b", 1, path="/b")) == (2, 0)
    assert engine.ask("b itself", lora("b", 2, path="/b")) == (0, 0)


def test_what_runs_while_the_weights_change_is_of_none(engine: Engine) -> None:
    context = engine.arrive("runs", 4, keys="adapter /a", lora=lora())
    engine.loaded[1] = OLD
    state = engine.table["runs"].group_states[0]
    every = state.offload_keys
    state.offload_keys = every[:2]
    engine.step()
    assert engine.store(context) == 2
    engine.files["/a"] = NEW
    engine.load(lora(in_place=True))
    state.offload_keys = every
    assert engine.store(context) == 0
    engine.step()
    engine.side.reset(emptied=True)
    assert engine.store(context) == 0
    engine.side.preempted(["runs"])
    state.next_stored_chunk_idx = 0
    assert engine.store(context) == 4, "it begins again from nothing"


def test_what_runs_with_another_content_and_stores_first_afterwards(engine: Engine) -> None:
    context = engine.arrive("runs", 2, keys="adapter /a", lora=lora())
    engine.loaded[1] = OLD
    engine.step()
    engine.loaded[1] = NEW
    engine.step()
    assert engine.store(context) == 0


def test_what_ranks_do_not_say_is_waited_for_and_then_not_stored(engine: Engine) -> None:
    context = engine.arrive("runs", 2, keys="adapter /a", lora=lora())
    for _ in range(adapters._PATIENCE):
        assert engine.store(context) == 0
        assert engine.next_offered("runs") == 0, "it is offered again"
    assert engine.store(context) == 0
    assert engine.next_offered("runs") == 2
    assert refusals(engine)[1] == {Why.ADAPTER: 2}


def test_ranks_that_disagree_have_nothing_in_common() -> None:
    watch = Watch(2)
    use = watch.adapters.arrived(lora())
    assert use is not None
    watch.adapters.heard([Loaded(0, 0, {1: OLD})])
    assert watch.adapters._content(use) is None
    watch.adapters.heard([Loaded(1, 0, {2: OLD})])
    assert watch.adapters._content(use) is None
    watch.adapters.heard([Loaded(1, 0, {1: NEW})])
    assert watch.adapters._content(use) == (OLD, NEW)
    watch.adapters.heard([Loaded(0, 0, {1: b""})])
    assert watch.adapters._content(use) is None


def test_too_many_adapters(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_MOST", 1)
    assert engine.ask("first", lora()) == (0, 2)
    assert engine.ask("other", lora("b", 2, path="/b")) == (0, 0)
    assert engine.ask("again", lora()) == (2, 0)


def test_a_vllm_that_cannot_be_listened_to(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(EngineCore, "remove_lora")
    engine.side.watch = Watch(1)
    assert engine.ask("first", lora()) == (0, 0)
    assert engine.ask("base") == (0, 2)


def test_a_bug_of_ours_keeps_nobody_from_loading(engine: Engine) -> None:
    made = core(SimpleNamespace(add_lora=lambda _: True))
    assert made.add_lora(SimpleNamespace())
    assert engine.ask("first", lora()) == (0, 0)
