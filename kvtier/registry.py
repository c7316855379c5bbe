"""Find plugins by name: one table per kind, then entry points, then `package.module:Class`.

A table holds strings, so that nothing is imported before it is asked for. A built-in name always
means the built-in: entry points cannot take it over.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple, overload

import msgspec

from kvtier.codec import Codec
from kvtier.errors import ConfigError
from kvtier.policy import AdmissionPolicy, EvictionPolicy, PrefetchPolicy
from kvtier.tier import AskedTier, Site, Tier

EVICTION = {
    "arc": "kvtier.policies.eviction.arc:ArcPolicy",
    "attention": "kvtier.policies.eviction.attention:AttentionPolicy",
    "gdsf": "kvtier.policies.eviction.gdsf:GdsfPolicy",
    "lfu": "kvtier.policies.eviction.lfu:LfuPolicy",
    "lru": "kvtier.policies.eviction.lru:LruPolicy",
    "random": "kvtier.policies.eviction.random:RandomPolicy",
    "session": "kvtier.policies.eviction.session:SessionPolicy",
    "s3fifo": "kvtier.policies.eviction.s3fifo:S3FifoPolicy",
    "sieve": "kvtier.policies.eviction.sieve:SievePolicy",
    "wtinylfu": "kvtier.policies.eviction.wtinylfu:WTinyLfuPolicy",
}
ADMISSION = {
    "always": "kvtier.policies.admission.always:AlwaysPolicy",
    "cost_aware": "kvtier.policies.admission.cost_aware:CostAwarePolicy",
    "min_tokens": "kvtier.policies.admission.min_tokens:MinTokensPolicy",
    "second_use": "kvtier.policies.admission.second_use:SecondUsePolicy",
}
PREFETCH = {
    "arrival": "kvtier.policies.prefetch.arrival:ArrivalPolicy",
    "reuse_distance": "kvtier.policies.prefetch.reuse_distance:ReuseDistancePolicy",
    "sliding_window": "kvtier.policies.prefetch.sliding_window:SlidingWindowPolicy",
}
CODEC = {
    "raw": "kvtier.codecs.raw:RawCodec",
    "lz4": "kvtier.codecs.lz4:Lz4Codec",
    "zstd": "kvtier.codecs.zstd:ZstdCodec",
    "pipeline": "kvtier.codecs.pipeline:PipelineCodec",
    "budget": "kvtier.codecs.budget:BudgetCodec",
    "zstd_dict": "kvtier.codecs.zstd_dict:ZstdDictCodec",
    "planes": "kvtier.codecs.planes:PlanesCodec",
    "layout": "kvtier.codecs.layout:LayoutCodec",
    "quantise": "kvtier.codecs.quantise:QuantiseCodec",
}
STAGES: dict[str, tuple[dict[str, object], ...]] = {
    "int8": ({"kind": "quantise", "k": 8, "v": 8}, {"kind": "zstd"}),
    "int4": ({"kind": "quantise", "k": 4, "v": 4}, {"kind": "zstd"}),
    "fp8": ({"kind": "quantise", "k": "fp8", "v": "fp8"}, {"kind": "zstd"}),
    "lossless": (
        {"kind": "planes"},
        {"kind": "zstd", "level": 1, "window_log": 15, "min_match": 7, "hash_log": 10},
    ),
}
"""Short names for codecs in stages; options beside one go to its first stage."""
TIER = {
    "file": "kvtier.tiers.file:FileTier",
    "memory": "kvtier.tiers.memory:MemoryTier",
    "redis": "kvtier.tiers.redis:RedisTier",
    "valkey": "kvtier.tiers.redis:RedisTier",
}
WRAPPER = {
    "faulty": "kvtier.tiers.wrappers:FaultyTier",
    "slow": "kvtier.tiers.wrappers:SlowTier",
}


class PluginKind(NamedTuple):
    """Plugins that implement one interface: the built-in ones, and the group of others' entry points."""

    interface: type
    group: str
    table: dict[str, str]


KINDS = {
    "eviction": PluginKind(EvictionPolicy, "kvtier.policies", EVICTION),
    "admission": PluginKind(AdmissionPolicy, "kvtier.policies", ADMISSION),
    "prefetch": PluginKind(PrefetchPolicy, "kvtier.policies", PREFETCH),
    "codec": PluginKind(Codec, "kvtier.codecs", CODEC),
    "tier": PluginKind(Tier, "kvtier.tiers", TIER),
    "wrapper": PluginKind(Tier, "kvtier.tiers", WRAPPER),
}


class Plugin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plugin by name, with its own options as its `Config` decoded and completed them."""

    kind: str
    options: Mapping[str, object] = {}


def lookup(kind: str, name: str) -> type:
    """Import the plugin class that `name` means among the plugins of `kind`.

    Raises:
        ConfigError: the name is unknown, its package is not installed, or it is no plugin of this kind.
    """
    plugin, interface = _load(kind, name, _target(kind, name)), KINDS[kind].interface
    if not isinstance(plugin, type) or not issubclass(plugin, interface):
        raise ConfigError(f"{kind} {name!r} is not a subclass of {interface.__name__}")
    return plugin


def find_callable(name: str) -> Callable[..., bool | None]:
    """Import the callable that `package.module:name` means, a hook; a ConfigError says why there is none."""
    found = _load("hook", name, name)
    if not callable(found):
        raise ConfigError(f"hook {name!r} cannot be called")
    return found


@overload
def build(kind: Literal["eviction"], plugin: Plugin, *parts: object) -> EvictionPolicy: ...
@overload
def build(kind: Literal["admission"], plugin: Plugin, *parts: object) -> AdmissionPolicy: ...
@overload
def build(kind: Literal["prefetch"], plugin: Plugin, *parts: object) -> PrefetchPolicy: ...
@overload
def build(kind: Literal["codec"], plugin: Plugin, *parts: object) -> Codec: ...
@overload
def build(kind: Literal["tier"], plugin: Plugin, *parts: object) -> Tier: ...
def build(kind: str, plugin: Plugin, *parts: object) -> object:
    """Construct a plugin: `cls(config, *parts)` where its class declares a `Config`, else `cls(*parts)`.

    A plugin that is not there, or options that its `Config` does not take, are a ConfigError.
    """
    plugin_class = lookup(kind, plugin.kind)
    return plugin_class(*_config(kind, plugin, plugin_class), *parts)


def wrap(inner: Tier, wrapper: Plugin) -> Tier:
    """Construct a wrapper around a tier, likewise: `cls(inner, config)` or `cls(inner)`."""
    plugin_class = lookup("wrapper", wrapper.kind)
    wrapped: Tier = plugin_class(inner, *_config("wrapper", wrapper, plugin_class))
    return wrapped


def build_reader(plugin: Plugin, site: Site) -> Tier:
    """Construct what reads a tier's records in another process, likewise."""
    target = lookup("tier", plugin.kind).reader  # type: ignore[attr-defined] # it is a Tier
    reader_class: Any = _load("tier", plugin.kind, target)
    made: Tier = reader_class(*_config("tier", plugin, reader_class), site)
    return made


def kept_once(tier_kind: str) -> bool:
    """Whether one rank can keep the records of this kind of tier for others of its node that have the same KV."""
    return bool(getattr(lookup("tier", tier_kind), "reader", ""))


def in_memory(tier_kind: str) -> bool:
    """Whether the records of this kind of tier take this machine's memory."""
    return bool(getattr(lookup("tier", tier_kind), "takes_numa", False))


def is_asked(tier_kind: str) -> bool:
    """Whether a tier of this kind is a store that other engines use too."""
    return issubclass(lookup("tier", tier_kind), AskedTier)


def names(kind: str) -> list[str]:
    """List every name known for `kind`: built-ins first, then installed entry points."""
    builtins = {**KINDS[kind].table, **(STAGES if kind == "codec" else {})}
    others = {entry.name for entry in entry_points(group=KINDS[kind].group)}
    return [*builtins, *sorted(others - set(builtins))]


def nearest(word: str, known: list[str]) -> str:
    """Phrase the closest of `known` as a question, or nothing where none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def meant(message: str) -> str | None:
    """Give the word that `nearest` found, from the message that tells it."""
    found = re.search(r" \(did you mean '([^']+)'\?\)", message)
    return found and found[1]


def _config(kind: str, plugin: Plugin, plugin_class: type) -> tuple[object, ...]:
    struct: type | None = getattr(plugin_class, "Config", None)
    if struct is None:
        return ()
    try:
        return (msgspec.convert(plugin.options, struct),)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{kind} {plugin.kind!r}: {exc}") from exc


def _target(kind: str, name: str) -> str:
    if name in KINDS[kind].table:
        return KINDS[kind].table[name]
    if ":" in name:
        return name
    for entry in entry_points(group=KINDS[kind].group, name=name):
        return entry.value
    known = names(kind)
    raise ConfigError(f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}")


def _load(kind: str, name: str, target: str) -> object:
    module, _, attribute = target.partition(":")
    thing = "callable" if kind == "hook" else "Class"
    if not module or not attribute:
        raise ConfigError(f"{kind} {name!r}: write it as package.module:{thing}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as exc:
        raise ConfigError(_missing(kind, name, module, exc.name or "")) from exc
    except AttributeError as exc:
        raise ConfigError(f"{kind} {name!r}: {module} has no {attribute!r}") from exc
    except (Exception, SystemExit) as exc:  # whatever somebody's module does when it is imported
        why = f"{type(exc).__name__}: {exc}"
        raise ConfigError(f"{kind} {name!r}: {module} cannot be imported: {why}") from exc


def _missing(kind: str, name: str, module: str, absent: str) -> str:
    if absent and (module == absent or module.startswith(absent + ".")):
        return f"{kind} {name!r}: there is no module {absent!r}"
    extra = f"; pip install 'kvtier[{name}]'" if kind in KINDS and name in KINDS[kind].table else ""
    return f"{kind} {name!r} needs the package {absent!r}, which is not installed{extra}"
