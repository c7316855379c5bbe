"""An adapter that vLLM may have read again: nothing of its name and path is stored or hit until the next reset."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.core import EngineCore

from kvtier.brain import Why
from kvtier.connectors.vllm import adapters
from tests.connectors.test_scheduling import Engine, refusals


@pytest.fixture
def engine() -> Engine:
    return Engine()


def lora(name: str = "a", number: int = 1, *, path: str = "/a", in_place: bool = False) -> Any:
    return SimpleNamespace(
        lora_name=name, lora_path=path, lora_int_id=number, load_inplace=in_place
    )


def core() -> Any:
    made = EngineCore.__new__(EngineCore)
    made.model_executor = SimpleNamespace(
        add_lora=lambda request: True, remove_lora=lambda number: True
    )
    return made


def ask(engine: Engine, request: str, adapter: Any) -> tuple[int, int]:
    """Ask for the two chunks of an adapter's only prompt: how many are hit, and how many stored then."""
    keys = "adapter" if adapter else "base"
    context = engine.arrive(request, 2, keys=keys, lora=adapter)
    hits = [engine.hit(key, context) for key in engine.keys(keys, 2)]
    return sum(hits), engine.store(context)


AGAIN = {
    "in place, as a request says": lambda: lora(in_place=True),
    "under another id": lambda: lora(number=2),
    "in place": lambda: core().add_lora(lora(in_place=True)),
    "under another id, at once": lambda: core().add_lora(lora_request=lora(number=2)),
    "after it was unloaded": lambda: core().remove_lora(1),
}


@pytest.mark.parametrize("how", AGAIN)
def test_an_adapter_that_is_loaded_again(engine: Engine, how: str) -> None:
    assert ask(engine, "first", lora()) == (0, 2)
    assert ask(engine, "again", lora()) == (2, 0)
    waiting = engine.arrive("waiting", 2, keys="adapter", lora=lora())
    if (request := AGAIN[how]()) not in (True, False):
        assert ask(engine, "new", request) == (0, 0)
    assert ask(engine, "after", lora()) == (0, 0)
    assert not engine.hit(engine.keys("adapter", 2)[0], waiting)
    assert ask(engine, "base", None) == (0, 2)
    assert ask(engine, "other", lora(path="/b")) != (0, 0), "another path is another hash"
    loads, stores = refusals(engine)
    assert loads[Why.ADAPTER] >= 1
    assert stores[Why.ADAPTER] >= 2


def test_what_is_loaded_first_or_found_there_is_in_no_doubt(engine: Engine) -> None:
    assert core().add_lora(lora(in_place=True))
    assert ask(engine, "first", lora()) == (0, 2)
    assert core().add_lora(lora())  # every API server says it
    assert core().remove_lora(7)
    assert ask(engine, "again", lora()) == (2, 0)


def test_a_reset_ends_the_doubt(engine: Engine) -> None:
    assert ask(engine, "first", lora()) == (0, 2)
    core().add_lora(lora(in_place=True))
    assert ask(engine, "new", lora()) == (0, 0)
    for name in ("first", "new"):
        engine.side.depart(name)
    engine.side.reset(emptied=True)
    assert ask(engine, "after", lora()) == (0, 2)
    assert ask(engine, "hit", lora()) == (2, 0)


def test_too_many_adapters_are_in_doubt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_MOST", 1)
    assert ask(engine, "first", lora()) == (0, 2)
    assert ask(engine, "other", lora("b")) == (0, 0)
    assert ask(engine, "again", lora()) == (2, 0)


def test_a_vllm_that_cannot_be_listened_to(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(EngineCore, "remove_lora")
    engine.side._adapters = adapters.Adapters()
    assert ask(engine, "first", lora()) == (0, 0)
    assert ask(engine, "base", None) == (0, 2)


def test_a_bug_of_ours_keeps_nobody_from_loading(engine: Engine) -> None:
    assert core().add_lora(SimpleNamespace())
    assert ask(engine, "first", lora()) == (0, 0)
