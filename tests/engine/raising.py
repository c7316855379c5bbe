"""Plants a bug in one hook of kvtier inside a running engine, and mends it again."""

import errno
from collections.abc import Callable
from typing import Any

from tests.engine.faults import core_of
from tests.engine.inside import connector


def _worker_connector() -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()


def _owner(llm: Any, place: str) -> Any:
    """Find the object whose method is to fail; with one rank the worker lives in this process too."""
    rank = _worker_connector().rank
    return {
        "scheduling": connector(llm).scheduling,
        "brain": connector(llm).scheduling.brain,
        "rank": rank,
        "worker": rank.worker,
        "engine": rank.worker._engine,
    }[place]


def plant(llm: Any, place: str, method: str, skip: int) -> None:
    """Make `method` raise from its call number `skip` on."""
    owner = _owner(llm, place)
    original: Callable[..., Any] = getattr(owner, method)
    calls = 0

    def buggy(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > skip:
            raise OSError(errno.EMFILE, f"planted in {place}.{method}")
        return original(*args, **kwargs)

    if hasattr(type(owner), "__slots__") and not hasattr(owner, "__dict__"):
        raise TypeError(f"{place} cannot be patched")
    setattr(owner, method, buggy)


def mend(llm: Any, place: str, method: str) -> list[str]:
    """Take the bug out, turn kvtier on again with an empty cache, and say why each side was off."""
    delattr(_owner(llm, place), method)
    why = turn_on(llm)
    guards = (connector(llm).scheduling.guard, _worker_connector().rank.guard)
    assert not any(guard.broken for guard in guards)
    return why


def turn_on(llm: Any) -> list[str]:
    """Turn kvtier on again with an empty cache, and say why each side was off."""
    scheduling, rank = connector(llm).scheduling, _worker_connector().rank
    core = core_of(llm)
    while core.batch_queue:  # a step in flight may say once more that a worker is off
        core.step_fn()
    why = [scheduling.guard.broken, rank.guard.broken]
    scheduling.guard.broken = rank.guard.broken = ""
    rank._said_broken = False
    for _ in range(50):  # what was in flight ends
        core.step_fn()
    llm.reset_prefix_cache(False, True)
    for _ in range(50):
        core.step_fn()
    return why
