"""Compare our vLLM classes with the vLLM that is installed: every override, derived from the classes themselves.

A fault is one line of text that names the method and both signatures.
"""

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType

import kvtier.connectors.vllm as connector_package

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ACCESSORS = (property, cached_property)

_SINCE = dict.fromkeys(
    ("get_load_source", "get_external_cache_hit_sources", "load_key_ranges", "CacheHitSource"),
    (0, 32),
)
"""Hooks of ours that vLLM calls only from this release on, and what they use; before it nobody misses them."""


def modules() -> list[ModuleType]:
    """Import every module of the connector."""
    names = [found.name for found in pkgutil.iter_modules(connector_package.__path__)]
    return [load(f"{connector_package.__name__}.{name}") for name in names]


def load(module: str) -> ModuleType:
    """Import a module; the warnings that others give while they are imported are not ours to fail for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def classes() -> list[type]:
    """List the classes of the connector that derive from one of vLLM's."""
    return [
        item
        for module in modules()
        for item in vars(module).values()
        if isinstance(item, type) and item.__module__ == module.__name__ and of_vllm(item)
    ]


def of_vllm(item: object) -> bool:
    """Whether a class is vLLM's or derives from one that is."""
    bases = item.__mro__ if isinstance(item, type) else ()
    return any(base.__module__.split(".")[0] == "vllm" for base in bases)


def release() -> tuple[int, int]:
    """Give the version of the vLLM that is imported."""
    import vllm

    major, minor = vllm.__version__.split(".")[:2]
    return int(major), int(minor)


def comes_later(name: str) -> bool:
    """Whether only later releases have what has this name, and reach it."""
    return release() < _SINCE.get(name, (0, 0))


def inherited(cls: type, name: str) -> object | None:
    """Find what a name means in the bases of a class that are vLLM's; None where it means nothing."""
    for base in cls.__mro__[1:]:
        if base.__module__.split(".")[0] == "vllm" and name in vars(base):
            found: object = vars(base)[name]
            return found
    return None


def override_faults(cls: type) -> Iterator[str]:
    """Find each method that does not take what vLLM passes to the one that it overrides."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        yield f"{cls.__name__} lacks {', '.join(missing)}, abstract in this vLLM"
    for name, ours in vars(cls).items():
        theirs = inherited(cls, name)
        if theirs is None or not _is_method(ours):
            continue
        if _kind(ours) != _kind(theirs):
            yield f"{cls.__name__}.{name} is a {_kind(ours)}, vLLM's a {_kind(theirs)}"
        elif not isinstance(ours, _ACCESSORS):
            mine, base = signature(ours), signature(theirs)
            if not accepts(mine, base):
                yield f"{cls.__name__}.{name}{mine} overrides {base}"


def orphan_faults(cls: type, called: set[str]) -> Iterator[str]:
    """Find each public method that neither vLLM has nor our own code calls: vLLM renamed or dropped its hook."""
    for name, ours in vars(cls).items():
        if name.startswith("_") or not _is_method(ours) or name in called:
            continue
        if inherited(cls, name) is None and not comes_later(name):
            yield f"{cls.__name__}.{name}{signature(ours)} overrides nothing and nobody calls it"


def accepts(ours: inspect.Signature, theirs: inspect.Signature) -> bool:
    """Whether whatever binds to vLLM's signature binds to ours: by position, by keyword, at least, at most."""
    params = list(theirs.parameters.values())
    kinds = {param.kind for param in params}
    mine = {param.kind for param in ours.parameters.values()}
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if not kinds & variadic <= mine:
        return False
    named = [param for param in params if param.kind not in variadic]
    required = [param for param in named if param.default is param.empty]
    return all(
        binds(ours, *split(chosen, by_keyword=by_keyword))
        for chosen in (named, required)
        for by_keyword in (False, True)
    )


def split(params: list[inspect.Parameter], *, by_keyword: bool) -> tuple[int, list[str]]:
    """Say how a call passes these parameters: how many by position, which by keyword."""
    positional = [param for param in params if param.kind in _POSITIONAL]
    bound = [param for param in positional if not by_keyword or param.name in ("self", "cls")]
    return len(bound), [param.name for param in params if param not in bound]


def binds(target: inspect.Signature, positional: int, keywords: list[str]) -> bool:
    """Whether a call with so many positional arguments and these keywords fits a signature."""
    try:
        target.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def signature(method: object) -> inspect.Signature:
    """Give a method's signature as its class body has it, `self` included."""
    plain = getattr(method, "__func__", method)
    assert callable(plain)
    return inspect.signature(plain)


def _is_method(item: object) -> bool:
    return isinstance(item, (classmethod, staticmethod, *_ACCESSORS)) or inspect.isfunction(item)


def _kind(item: object) -> str:
    if isinstance(item, _ACCESSORS):
        return "property"
    return type(item).__name__
