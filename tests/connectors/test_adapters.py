"""Chunks of an adapter are of one content: who computes with another one neither stores nor hits, until all is reset."""

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.core import EngineCore

from kvtier.brain import Why
from kvtier.connectors.vllm import adapters
from kvtier.connectors.vllm.adapters import Adapters, Loaded
from kvtier.connectors.vllm.looks import TRUST_S, WAIT_S, Looked, Trust
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.watch import Watch
from kvtier.types import BlockKey
from tests.brain.fake_ranks import Clock
from tests.connectors import halves, test_scheduling
from tests.connectors.test_scheduling import refusals

OLD, NEW = b"old", b"new"


class Engine(test_scheduling.Engine):
    """One whose rank has adapters, read when a request computes or when it is told to, and a device that caches."""

    def __init__(self) -> None:
        self.others = 0
        self.files = {"/a": OLD, "/b": b"other"}
        self.loaded: dict[int, bytes] = {}
        self.found: dict[str, bytes] = {}  # what was read at each path last
        self.device: dict[bytes, bytes] = {}  # what each chunk on it was computed with
        self.stored: dict[bytes, bytes] = {}  # and what those in kvtier were
        super().__init__()

    def answer(self, meta: KVTierMetadata) -> KVTierWorkerMetadata:
        told = KVTierWorkerMetadata()
        if meta.look or meta.adapters:
            same = {path: self.found.get(path) == self.files[path] for path in meta.paths}
            expected = {path: self.files[path] if same[path] else b"" for path in meta.paths}
            told.loaded = [Loaded(0, meta.adapters, dict(self.loaded), expected)]
        told.looked = [Looked(0, meta.look, b"weights")] if meta.look else []
        return told

    def ask(self, request: str, adapter: Any = None, chunks: int = 2) -> tuple[int, int]:
        """Let a request run to its end: how many chunks it hits in kvtier, and how many that stores."""
        name = f"adapter {adapter.lora_name} {adapter.lora_path}" if adapter else "base"
        context = self.arrive(request, chunks, keys=name, lora=adapter)
        keys = self.keys(name, chunks)

        def hits() -> list[bytes]:
            return [key for key in keys if self.hit(key, context)]

        while hits() and self.side.watch.trust(request) is Trust.WAIT:
            self.step()
        hit = [key for key in hits() if key not in self.device]
        now = self.read(adapter) if adapter else b"base"
        assert {self.stored[key] for key in hit} <= {now}, "computed with other weights"
        self.device = dict.fromkeys(keys, now) | self.device
        before = self.held(keys)
        self.store(context)
        new = self.held(keys) - before
        self.stored |= {key: self.device[key] for key in new}
        self.manager.on_request_finished(context)
        return len(hit), len(new)

    def held(self, keys: list[bytes]) -> set[bytes]:
        return {key for key in keys if self.side.brain.view.holds(0, BlockKey(key))}

    def read(self, adapter: Any) -> bytes:
        """Do as vLLM does before it computes with an adapter, or is told to load it."""
        if adapter.load_inplace or adapter.lora_int_id not in self.loaded:
            self.found[adapter.lora_path] = self.files[adapter.lora_path]
            self.loaded[adapter.lora_int_id] = self.files[adapter.lora_path]
        return self.loaded[adapter.lora_int_id]

    def empty_device(self) -> None:
        self.device.clear()
        self.side.watch.device._was_reset(None, True)

    def reset(self, *, emptied: bool = True) -> None:
        """Reset kvtier; unless a request holds KV, the device is empty then."""
        if emptied:
            self.device.clear()
        self.side.reset(emptied=emptied)

    def load(self, adapter: Any) -> None:
        """Load an adapter, as an API server says; vLLM loads it again only in place."""
        core(SimpleNamespace(add_lora=self.read)).add_lora(adapter)

    def unload(self, number: int) -> None:
        gone = partial(self.loaded.pop, number, None)
        core(SimpleNamespace(remove_lora=lambda _: gone() is not None)).remove_lora(number)

    def drop(self) -> None:
        """Let a step of others take the places of all adapters."""
        self.loaded.clear()
        self.others += 1
        self.ask("others", lora(f"other {self.others}", 9 + self.others, path="/b"), chunks=1)


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
    "after it was dropped": lambda engine: engine.drop(),
    "in place, as requests say": lambda engine: None,
}


def after(how: str) -> Any:
    return lora(number=2 if "another" in how else 1, in_place="requests" in how)


@pytest.mark.parametrize("how", AGAIN)
def test_an_adapter_that_is_read_again_with_other_weights(engine: Engine, how: str) -> None:
    assert engine.ask("first", lora()) == (0, 2)
    engine.empty_device()
    assert engine.ask("again", lora()) == (2, 0)
    engine.empty_device()
    engine.files["/a"] = NEW
    AGAIN[how](engine)
    for request in ("new", "next"):
        assert engine.ask(request, after(how)) == (0, 0)
        engine.empty_device()
    assert engine.ask("base") == (0, 2)
    loads, stores = refusals(engine)
    assert loads[Why.ADAPTER] >= 1
    assert stores[Why.ADAPTER] >= 2
    engine.reset()
    assert engine.ask("fresh", after(how)) == (0, 2)
    engine.empty_device()
    assert engine.ask("hit", after(how)) == (2, 0)


@pytest.mark.parametrize("how", AGAIN)
def test_an_adapter_that_is_read_again_as_it_was(engine: Engine, how: str) -> None:
    assert engine.ask("first", lora()) == (0, 2)
    AGAIN[how](engine)
    engine.empty_device()
    assert engine.ask("again", after(how)) == (2, 0)


def test_an_id_that_is_used_for_another_path_computes_with_what_it_has_loaded(
    engine: Engine,
) -> None:
    assert engine.ask("a", lora()) == (0, 2)
    assert engine.ask("b", lora("b", 1, path="/b")) == (0, 2), "of the weights of a"
    engine.empty_device()
    assert engine.ask("b again", lora("b", 1, path="/b")) == (2, 0)
    engine.empty_device()
    assert engine.ask("b itself", lora("b", 2, path="/b")) == (0, 0)


def test_what_runs_while_the_weights_change_is_not_kept(engine: Engine) -> None:
    context = engine.arrive("runs", 4, keys="adapter a /a", lora=lora())
    engine.loaded[1] = OLD
    state = engine.table["runs"].group_states[0]
    every = state.offload_keys
    state.offload_keys = every[:2]
    engine.store(context)
    assert len(engine.held(every)) == 2
    engine.files["/a"] = NEW
    engine.load(lora(in_place=True))
    state.offload_keys = every
    assert engine.store(context) == 2, "nobody knows it yet"
    assert len(engine.held(every)) == 2, "it is known when they are copied"
    assert engine.ask("next", lora()) == (0, 0)


def test_what_the_device_has_of_the_old_weights_is_not_taken_for_the_new(engine: Engine) -> None:
    context = engine.arrive("not stored", 2, keys="adapter a /a", lora=lora(), store=False)
    engine.device = dict.fromkeys(engine.keys("adapter a /a", 2), engine.read(lora()))
    assert engine.store(context) == 0
    engine.files["/a"] = NEW
    engine.load(lora(in_place=True))
    assert engine.ask("new", lora()) == (0, 0)
    engine.empty_device()
    assert engine.ask("next", lora()) == (0, 0)
    engine.reset()
    assert engine.ask("fresh", lora()) == (0, 2)


def test_a_reset_while_a_request_holds_kv_counts_when_the_device_is_empty(engine: Engine) -> None:
    assert engine.ask("first", lora()) == (0, 2)
    engine.files["/a"] = NEW
    engine.load(lora(in_place=True))
    engine.reset(emptied=False)
    assert engine.ask("new", lora()) == (0, 0)
    engine.empty_device()
    assert engine.ask("next", lora()) == (0, 2)


def test_what_computes_before_the_ranks_have_said_hello_counts(engine: Engine) -> None:
    side = engine.side
    brain, side._brain = side._brain, None
    context = engine.arrive("early", 2, keys="adapter a /a", lora=lora())
    engine.read(lora())
    engine.step(computes="early")
    side._brain = brain
    engine.files["/a"] = NEW
    engine.load(lora(in_place=True))
    engine.arrive("early", 2, keys="adapter a /a", lora=lora())
    engine.store(context)
    assert not engine.held(engine.keys("adapter a /a", 2))


def test_who_promises_that_adapters_do_not_change_hits_what_came_before(engine: Engine) -> None:
    watch = Watch(1, persist_lora=True)
    watch.adapters.arrived("a", lora())
    assert watch.adapters.may_load("a")
    for content in (OLD, NEW):
        step = watch.adapters.step(["a"])
        watch.adapters.heard([Loaded(0, step, {1: content}, {})])
    assert not watch.adapters.may_load("a")


@pytest.fixture
def two() -> Adapters:
    """The adapters of two ranks, and a request."""
    made = Watch(2).adapters
    made.arrived("a", lora())
    return made


def computed(adapters: Adapters, *digests: bytes) -> bool:
    """Let a step compute with these; whether chunks of it are kept."""
    step = adapters.step(["a", "of none"])
    adapters.heard([Loaded(rank, step, {1: each}, {}) for rank, each in enumerate(digests)])
    return adapters.keeps(adapters.key("a"))


@pytest.mark.parametrize(
    "second", [(NEW, OLD), (OLD, OLD), (OLD, b""), (OLD,)], ids=lambda each: f"{len(each)}{each[0]}"
)
def test_all_ranks_count(two: Adapters, second: tuple[bytes, ...]) -> None:
    assert computed(two, OLD, NEW)
    assert computed(two, OLD, NEW)
    assert not computed(two, *second)
    assert not computed(two, OLD, NEW), "what was mixed stays so"


def test_where_a_rank_says_nothing_nobody_knows_what_was_computed(two: Adapters) -> None:
    assert not computed(two, OLD)
    assert not computed(two, OLD)


def test_a_step_that_nobody_speaks_of_was_computed_with_who_knows_what(two: Adapters) -> None:
    assert computed(two, OLD, NEW)
    two.step(["a"])
    assert not computed(two, OLD, NEW)


def test_looks_compare_the_files_of_a_few_adapters_each(two: Adapters) -> None:
    two._compare = {str(i): [] for i in range(40)}
    assert [len(two.take_paths()) for _ in range(3)] == [32, 8, 0]


def test_who_does_not_fit_into_a_look_waits_for_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_PATHS", 1)
    used = {"a": lora(), "b": lora("b", 2, path="/b")}
    for round_ in range(2):  # in the second the ranks say what is in the files
        for name, adapter in used.items():
            engine.ask(f"{name}{round_}", adapter)
            engine.empty_device()
        engine.drop()
    engine.files = {"/a": NEW, "/b": NEW}
    keys = {name: f"adapter {name} {adapter.lora_path}" for name, adapter in used.items()}
    contexts = {name: engine.arrive(name, 2, keys=keys[name], lora=used[name]) for name in used}

    def hits() -> list[bool]:
        return [engine.hit(engine.keys(keys[name], 2)[0], contexts[name]) for name in used]

    assert hits() == [True, True], "as far as is known now"
    for waits in ([False, True], [False, False]):
        engine.step()
        assert engine.side.watch.looks.order(computes=False) == 0, "nobody asks: they may be asleep"
        assert [engine.side.watch.adapters.waits(name) for name in used] == waits
        assert hits() == waits, "the files are others"


def test_files_are_compared_anew_after_ten_seconds() -> None:
    clock = Clock()
    watch = Watch(1)
    adapters = Adapters(1, watch.looks, clock=clock)
    adapters.arrived("a", lora(in_place=True))
    adapters.heard([Loaded(0, adapters.step(["a"]), {1: OLD}, {})])
    for expected, hit in ((OLD, True), (b"", False), (OLD, True)):
        assert adapters.may_load("a")
        assert adapters.take_paths() == ["/a"]
        look = watch.looks.order(computes=False)
        assert adapters.may_load("a")
        assert adapters.waits("a")
        adapters.heard([Loaded(0, 0, {1: OLD}, {"/a": expected})])
        watch.looks.heard([Looked(0, look, b"weights")])
        assert adapters.may_load("a") == hit
        assert adapters.take_paths() == []
        clock.now += TRUST_S


def test_a_hit_does_not_wait_for_ever_until_files_are_compared() -> None:
    clock = Clock()
    watch = Watch(1)
    adapters = Adapters(1, watch.looks, clock=clock)
    adapters.arrived("a", lora(in_place=True))
    adapters.heard([Loaded(0, adapters.step(["a"]), {1: OLD}, {})])
    assert adapters.may_load("a")
    clock.now += WAIT_S
    assert not adapters.may_load("a")


def test_nobody_else_waits_until_files_are_compared() -> None:
    watch = Watch(1)
    watch.looks.heard([Looked(0, watch.looks.order(computes=True), b"weights")])
    watch.adapters.arrived("a", lora(in_place=True))
    watch.adapters.heard([Loaded(0, watch.adapters.step(["a"]), {1: OLD}, {})])
    assert watch.adapters.may_load("a")
    assert watch.trust("a") is Trust.WAIT
    assert watch.trust("other") is Trust.YES
    assert watch.looks.order(computes=False) == 2


def test_who_ended_before_the_ranks_said_hello_leaves_nothing() -> None:
    made = halves.unheard()
    for name in ("ended", "lives"):
        request = SimpleNamespace(request_id=name, lora_request=lora(), kv_transfer_params=None)
        made.arrive(request)
    del made._manager.early["ended"]
    made.watch.adapters.only(made._manager.early.keys())
    assert list(made.watch.adapters._uses) == ["lives"]


def test_too_many_adapters(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_MOST", 1)
    assert engine.ask("first", lora()) == (0, 2)
    assert engine.ask("other", lora("b", 2, path="/b")) == (0, 0)
    engine.empty_device()
    assert engine.ask("again", lora()) == (2, 0)


def test_a_vllm_that_cannot_be_listened_to(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(EngineCore, "remove_lora")
    engine.side.watch = Watch(1)
    assert engine.ask("first", lora()) == (0, 0)
    assert engine.ask("base") == (0, 2)


def test_what_departs_leaves_nothing(engine: Engine) -> None:
    assert engine.ask("first", lora()) == (0, 2)
    known = engine.side.watch.adapters
    assert (known._uses, known._computing, known._compare) == ({}, {}, {})


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_read_when_no_hit_is_of_other_weights(engine: Engine, seed: int) -> None:
    """Each request asserts what it hits. Files never change between a look and the reading after it."""
    rng, hits = random.Random(seed), 0
    acts: list[Callable[[], object]] = [
        lambda: engine.files.update({rng.choice(["/a", "/b"]): rng.choice([OLD, NEW])}),
        lambda: engine.load(any_lora(rng)),
        lambda: engine.unload(rng.choice([1, 2])),
        engine.drop,
        engine.empty_device,
        engine.empty_device,
        lambda: engine.reset(emptied=rng.random() < 0.8),
        *(engine.reset for _ in range(3)),
    ]
    for i in range(200):
        if rng.random() < 0.2:
            rng.choice(acts)()
        hits += engine.ask(f"request {i}", any_lora(rng))[0]
    assert not engine.side.guard.broken
    assert hits


def any_lora(rng: random.Random) -> Any:
    path = rng.choice(["/a", "/a", "/b"])
    return lora("a", rng.choice([1, 1, 2]), path=path, in_place=rng.random() < 0.2)
