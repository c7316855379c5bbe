"""Hides attributes of vLLM's offloading from kvtier, one at a time, as if a release had lost them; vLLM itself has them."""

import sys
from collections.abc import Callable
from typing import Any

from tests.engine.inside import connector
from tests.engine.raising import turn_on

MODULES = ("scheduler", "worker", "events")
STANDS_IN = "kvtier.connectors.vllm.increments"
"""This one stands in for vLLM's own code, and only where the source of that is known."""
_seen: set[str] = set()
_hidden = ""


def watch(llm: Any) -> int:
    """Note from now on what kvtier's connector reads of vLLM's objects; return how many classes are watched."""
    from importlib import import_module

    found = 0
    for name in MODULES:
        module = import_module(f"vllm.distributed.kv_transfer.kv_connector.v1.offloading.{name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                cls.__getattribute__ = _looking(cls)  # type: ignore[method-assign,assignment]
                found += 1
    return found


def seen(llm: Any) -> list[str]:
    """What it has read, as `Class.attribute`."""
    return sorted(_seen)


def hide(llm: Any, name: str) -> None:
    """Let it miss this one."""
    global _hidden
    _hidden = name


def show(llm: Any) -> list[str]:
    """Give it back, turn kvtier on again, and say why each side was off."""
    hide(llm, "")
    return turn_on(llm)


def are_off(llm: Any) -> bool:
    """Whether kvtier has turned itself off."""
    return bool(connector(llm).scheduling.guard.broken)


def _looking(cls: type) -> Callable[[Any, str], Any]:
    def look(self: Any, name: str) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        if caller.startswith("kvtier.connectors") and caller != STANDS_IN:
            full = f"{cls.__name__}.{name}"
            _seen.add(full)
            if full == _hidden:
                raise AttributeError(f"{full} is hidden")
        return object.__getattribute__(self, name)

    return look
