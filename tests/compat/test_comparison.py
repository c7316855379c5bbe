"""The contract finds what it is for: each case is a change that a release could make."""

import ast
from types import ModuleType

import pytest

from tests.compat import contract, source


class Base:
    def hook(self, one: int, *, two: int = 0) -> None: ...
    def kept(self, one: int) -> None: ...
    @classmethod
    def made(cls, one: int) -> None: ...
    @property
    def lock(self) -> int:
        return 0


Base.__module__ = "vllm.fake"


class Fits(Base):
    def hook(self, one: int, three: int = 0, *, two: int = 0) -> None: ...
    @classmethod
    def made(cls, one: int, **more: int) -> None: ...
    @property
    def lock(self) -> int:
        return 1


class Renamed(Base):
    def hook(self, first: int, *, two: int = 0) -> None: ...


class Demanding(Base):
    def hook(self, one: int, extra: int, *, two: int = 0) -> None: ...  # type: ignore[override]


class Narrow(Base):
    def hook(self, one: int) -> None: ...  # type: ignore[override]


class Unbound(Base):
    def made(self, one: int) -> None: ...  # type: ignore[override]


class Called(Base):
    def lock(self) -> int: ...  # type: ignore[override,empty-body]


class Lost(Base):
    def gone(self) -> None: ...


def test_what_vllm_passes_fits() -> None:
    assert not list(contract.override_faults(Fits))
    assert not list(contract.orphan_faults(Fits, set()))


@pytest.mark.parametrize("cls", [Renamed, Demanding, Narrow])
def test_a_signature_that_does_not_take_it_is_named_with_both(cls: type) -> None:
    (fault,) = contract.override_faults(cls)
    assert fault.startswith(f"{cls.__name__}.hook(self, ")
    assert "overrides (self, one: int, *, two: int = 0)" in fault


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        (Unbound, "made is a function, vLLM's a classmethod"),
        (Called, "lock is a function, vLLM's a property"),
    ],
)
def test_a_method_of_another_kind_is_named(cls: type, kinds: str) -> None:
    assert list(contract.override_faults(cls)) == [f"{cls.__name__}.{kinds}"]


def test_a_hook_that_vllm_dropped_is_named_unless_we_call_it() -> None:
    assert list(contract.orphan_faults(Lost, set()))
    assert not list(contract.orphan_faults(Lost, {"gone"}))


SOURCE = """
from vllm.v1.kv_offload.base import Medium, NoSuchThing, OffloadPolicy, ReqContext

ReqContext(no_such_field=1)
Medium.CPU, OffloadPolicy.NO_SUCH_MEMBER
try:
    from vllm.v1.no_such_module import Guarded
except ImportError:
    pass
"""


def test_imports_calls_and_members_that_vllm_lacks_are_named() -> None:
    tree = ast.parse(SOURCE)
    names = {name: found for _, name, found in source.vllm_imports(tree)}
    use = source.Use("ours.py", tree, names)
    assert list(source.import_faults(use)) == [
        "ours.py:2: vLLM has no vllm.v1.kv_offload.base.NoSuchThing"
    ]
    (call,) = source.call_faults(use)
    assert call.startswith("ours.py:4: ReqContext(no_such_field=1) does not fit ReqContext(")
    assert list(source.member_faults(use)) == [
        "ours.py:5: vLLM has no OffloadPolicy.NO_SUCH_MEMBER"
    ]


def test_a_super_call_that_vllm_lacks_is_named() -> None:
    tree = ast.parse("class Lost:\n def gone(self):\n  super().gone()\n  super().kept(1, 2)\n")
    use = source.Use("ours.py", tree, {"Lost": Lost})
    absent, misfit = source.super_faults(use)
    assert absent == "ours.py:3: vLLM has no gone above Lost"
    assert misfit.startswith("ours.py:4: super().kept(1, 2) does not fit kept(")


def test_a_module_is_read_with_what_it_imports() -> None:
    module = contract.load("kvtier.connectors.vllm.plugin")
    assert isinstance(module, ModuleType)
    assert "KVConnectorFactory" in source.Use.of(module).names
