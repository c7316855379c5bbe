"""Read the connector's source: what it imports from vLLM, calls there and reads of its configuration.

Found by parsing, so that a new use is covered without a word here.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.compat.contract import binds, comes_later, inherited, load, of_vllm


class Use(NamedTuple):
    """One module of ours: its tree and what each name of it means."""

    file: str
    tree: ast.Module
    names: dict[str, object]

    @classmethod
    def of(cls, module: ModuleType) -> "Use":
        """Parse a module and resolve its names, those that it imports for type checking too."""
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        imported = {name: found for _, name, found in vllm_imports(tree) if found is not None}
        return cls(Path(module.__file__).name, tree, vars(module) | imported)


def vllm_imports(tree: ast.Module) -> Iterator[tuple[ast.ImportFrom, str, object | None]]:
    """Resolve each `from vllm... import name`; None where this vLLM has no such thing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                yield node, alias.asname or alias.name, _find(str(node.module), alias.name)


def import_faults(use: Use) -> Iterator[str]:
    """Find each import that this vLLM does not have and that nothing catches."""
    caught = {
        id(statement)
        for node in ast.walk(use.tree)
        if isinstance(node, ast.Try)
        for statement in node.body
    }
    for node, name, found in vllm_imports(use.tree):
        if found is None and id(node) not in caught and not comes_later(name):
            yield f"{use.file}:{node.lineno}: vLLM has no {node.module}.{name}"


def call_faults(use: Use) -> Iterator[str]:
    """Find each call of a class or function of vLLM, or of a class derived from one, that does not fit."""
    for node in ast.walk(use.tree):
        if not isinstance(node, ast.Call):
            continue
        target = _target(use, node.func)
        if inspect.isroutine(target) or inspect.isclass(target):
            yield from _misfit(use, node, ast.unparse(node.func), inspect.signature(target))


def super_faults(use: Use) -> Iterator[str]:
    """Find each `super().hook(...)` whose hook vLLM does not have or that does not fit it."""
    for class_ in [node for node in use.tree.body if isinstance(node, ast.ClassDef)]:
        cls = use.names[class_.name]
        if not isinstance(cls, type) or not of_vllm(cls):
            continue
        for node in ast.walk(class_):
            if isinstance(node, ast.Call) and (name := _super_method(node)):
                yield from _super_misfit(use, node, cls, name)


def member_faults(use: Use) -> Iterator[str]:
    """Find each `Name.member` of a class or module of vLLM that this vLLM does not have."""
    for node in ast.walk(use.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = use.names.get(node.value.id)
            if _is_vllm(owner) and not _has(owner, node.attr):
                yield f"{use.file}:{node.lineno}: vLLM has no {node.value.id}.{node.attr}"


def calls(use: Use) -> set[str]:
    """Collect the attributes that our code reads on anything but `super()`."""
    return {
        node.attr
        for node in ast.walk(use.tree)
        if isinstance(node, ast.Attribute) and not _is_super(node.value)
    }


def optional_attributes(use: Use) -> dict[str, int]:
    """Collect the names that the module reads with `getattr(x, "name", default)`, and their lines."""
    return {
        node.args[1].value: node.lineno
        for node in ast.walk(use.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) == 3
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


def declared(cls: type) -> set[str]:
    """Collect the attributes that a class declares, its dataclass fields included."""
    annotated = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})}
    fields = (
        {field.name for field in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else set()
    )
    return annotated | fields | set(dir(cls))


def _find(module: str, name: str) -> object | None:
    try:
        found = load(module)
    except ImportError:
        return None
    if hasattr(found, name):
        value: object = getattr(found, name)
        return value
    return found.__annotations__.get(name)  # declared there and set at run time


def _target(use: Use, func: ast.expr) -> object | None:
    if isinstance(func, ast.Name):
        found = use.names.get(func.id)
        return found if _is_vllm(found) or of_vllm(found) else None
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        owner = use.names.get(func.value.id)
        return getattr(owner, func.attr, None) if _is_vllm(owner) else None
    return None


def _misfit(use: Use, node: ast.Call, name: str, target: inspect.Signature) -> Iterator[str]:
    if any(isinstance(arg, ast.Starred) for arg in node.args):
        return
    keywords = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    if len(keywords) == len(node.keywords) and not binds(target, len(node.args), keywords):
        yield f"{use.file}:{node.lineno}: {ast.unparse(node)} does not fit {name}{target}"


def _super_misfit(use: Use, node: ast.Call, cls: type, name: str) -> Iterator[str]:
    theirs = inherited(cls, name)
    if theirs is None and comes_later(name):
        return
    if theirs is None:
        yield f"{use.file}:{node.lineno}: vLLM has no {name} above {cls.__name__}"
        return
    plain = getattr(theirs, "__func__", theirs)
    if inspect.isfunction(plain):
        target = inspect.signature(plain.__get__(object()))
        yield from _misfit(use, node, name, target)


def _super_method(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute) and _is_super(node.func.value):
        return node.func.attr
    return ""


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "super"


def _is_vllm(item: object) -> bool:
    name = item.__name__ if isinstance(item, ModuleType) else getattr(item, "__module__", "")
    return str(name).split(".")[0] == "vllm"


def _has(owner: object, name: str) -> bool:
    return hasattr(owner, name) or (isinstance(owner, type) and name in declared(owner))
