"""Plugins are found by name, by entry point, by `module:Class`; and every one in the tree is in a table."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from kvtier import registry
from kvtier.config import Plugin
from kvtier.errors import ConfigError
from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policies.admission.always import AlwaysPolicy
from kvtier.policies.prefetch.arrival import ArrivalPolicy
from kvtier.policy import Move
from kvtier.testing.policies import FixedFacts
from kvtier.types import BlockKey

PLUGIN_FOLDERS = ("kvtier.policies", "kvtier.tiers", "kvtier.codecs")
FADING = "tests.config.plugins:FadingPolicy"


def plugin_classes() -> Iterator[type]:
    """Every class in the plugin folders that implements an interface."""
    interfaces = tuple(kind.interface for kind in registry.KINDS.values())
    for folder in PLUGIN_FOLDERS:
        package = importlib.import_module(folder)
        for module_info in pkgutil.walk_packages(package.__path__, folder + "."):
            module = importlib.import_module(module_info.name)
            own = [
                v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__
            ]
            for value in filter(inspect.isclass, own):
                if issubclass(value, interfaces) and not inspect.isabstract(value):
                    yield value


def test_every_plugin_in_the_tree_is_in_a_table() -> None:
    found = set(plugin_classes())
    leaves = {each for each in found if not any(each in other.__mro__[1:] for other in found)}
    listed = {target for kind in registry.KINDS.values() for target in kind.table.values()}
    readers = {target for each in found if (target := getattr(each, "reader", ""))}
    assert {f"{each.__module__}:{each.__name__}" for each in leaves} == listed | readers


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_name_in_the_tables_can_be_imported(kind: str) -> None:
    for name in registry.KINDS[kind].table:
        assert issubclass(registry.lookup(kind, name), registry.KINDS[kind].interface)


def test_a_class_by_its_path() -> None:
    assert registry.lookup("eviction", FADING).__name__ == "FadingPolicy"


def install(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [e for e in entries if e.group == group and name in (None, e.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_a_class_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EntryPoint("fading", FADING, "kvtier.policies"))
    assert registry.lookup("eviction", "fading").__name__ == "FadingPolicy"
    assert registry.names("eviction")[-1] == "fading"


def test_an_entry_point_cannot_take_over_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EntryPoint("always", FADING, "kvtier.policies"))
    assert registry.lookup("admission", "always") is AlwaysPolicy
    assert registry.names("admission") == list(registry.ADMISSION)


def test_an_entry_point_of_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EntryPoint("fading", FADING, "kvtier.policies"))
    with pytest.raises(ConfigError, match="'fading' is not a subclass of AdmissionPolicy"):
        registry.lookup("admission", "fading")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "arival",
            "unknown prefetch 'arival' (did you mean 'arrival'?); known: arrival, reuse_distance, sliding_window",
        ),
        ("xyz", "unknown prefetch 'xyz'; known: arrival, reuse_distance, sliding_window"),
        (
            "kvtier.policy:Nothing",
            "prefetch 'kvtier.policy:Nothing': kvtier.policy has no 'Nothing'",
        ),
        ("kvtier.policy:", "prefetch 'kvtier.policy:': write it as package.module:Class"),
        ("kvtier.nothing:X", "prefetch 'kvtier.nothing:X': there is no module 'kvtier.nothing'"),
    ],
)
def test_what_cannot_be_found_is_said(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.lookup("prefetch", name)
    assert str(caught.value) == message


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(name="zstandard")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ConfigError, match=r"needs the package 'zstandard'.*kvtier\[zstd\]"):
        registry.lookup("codec", "zstd")


def test_a_plugin_is_built_with_its_own_config() -> None:
    assert isinstance(
        registry.build("prefetch", Plugin(kind="arrival"), FixedFacts()), ArrivalPolicy
    )
    named = Plugin(kind=FADING, options={"half_life_s": "long"})
    with pytest.raises(ConfigError, match="half_life_s"):
        registry.build("eviction", named)


def test_the_default_policies_say_yes() -> None:
    keys = [BlockKey(b"a"), BlockKey(b"b")]
    assert AlwaysPolicy(FixedFacts()).admits(keys[0], 16)
    request = RequestFacts("r", (GroupKeys(keys, 16, None),), 0.0, RequestHints())
    assert ArrivalPolicy(FixedFacts()).arrived(request) == [Move(keys)]
