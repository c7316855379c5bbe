"""Calls that EngineCore gets and that vLLM tells no connector of: whoever listens hears of them when they are over."""

import functools
import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from kvtier.connectors.vllm.wrapping import wrapped

logger = logging.getLogger(__name__)

Heard = Callable[[Any, Any], None]
"""Takes the call's first argument, and what it returned: None where there is none, and where the call raised."""

_listeners: "dict[str, list[weakref.WeakMethod[Heard]]]" = {}


def listen(hook: str, heard: Heard) -> bool:
    """Let a bound method hear of every call of a method of EngineCore, as long as its object lives.

    Returns:
        Whether this vLLM has such a method.
    """
    from vllm.v1.engine.core import EngineCore

    theirs = getattr(EngineCore, hook, None)
    if theirs is None:
        return False
    _listeners.setdefault(hook, []).append(weakref.WeakMethod(heard))
    setattr(EngineCore, hook, wrapped(theirs, partial(_told, hook)))
    return True


def _told(hook: str, theirs: Any) -> Any:
    @functools.wraps(theirs)
    def method(core: Any, *args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = theirs(core, *args, **kwargs)
            return result
        finally:
            _tell(hook, next(iter([*args, *kwargs.values()]), None), result)

    return method


def _tell(hook: str, about: Any, result: Any) -> None:
    listening = [(ref, heard) for ref in _listeners[hook] if (heard := ref()) is not None]
    _listeners[hook] = [ref for ref, _ in listening]
    for _, heard in listening:
        try:
            heard(about, result)
        except Exception:  # what the engine is told to do is done all the same
            logger.exception("kvtier: a call of %s was not taken note of", hook)
