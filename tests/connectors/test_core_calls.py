"""Calls of EngineCore are heard, whoever else has wrapped the method before or after."""

import functools
import inspect
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.core import EngineCore

from kvtier.connectors.vllm import core_calls


class Listener:
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, object]] = []

    def heard(self, about: object, result: object) -> None:
        self.calls.append((about, result))


def wrapped(theirs: Any) -> Any:
    """Wrap a method, as plugins for tracing do."""

    @functools.wraps(theirs)
    def method(*args: object) -> object:
        return theirs(*args)

    return method


@pytest.mark.parametrize("hook", ["add_lora", "collective_rpc", "reset_prefix_cache"])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_what_another_plugin_wraps_is_heard_once(
    hook: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllms = inspect.unwrap(getattr(EngineCore, hook))
    plain = functools.wraps(vllms)(lambda core, about: f"{about} done")
    del plain.__wrapped__  # as vLLM has it
    monkeypatch.setattr(EngineCore, hook, wrapped(plain) if when == "before" else plain)
    first, second = Listener(), Listener()
    assert core_calls.listen(hook, first.heard)
    if when == "between":
        monkeypatch.setattr(EngineCore, hook, wrapped(getattr(EngineCore, hook)))
    assert core_calls.listen(hook, second.heard)
    if when == "after":
        monkeypatch.setattr(EngineCore, hook, wrapped(getattr(EngineCore, hook)))
    assert getattr(EngineCore, hook)(None, "this") == "this done"
    assert first.calls == second.calls == [("this", "this done")]
