"""From decoded YAML to the structs: units, plugins, defaults that depend on the kind of a tier."""

from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from functools import partial
from os import path as os_path
from os import stat
from stat import S_ISDIR

import msgspec

from kvtier.config.codecs import codec
from kvtier.config.plugins import find, options, plugin
from kvtier.config.rules import check
from kvtier.config.structs import ARENA, Config, IoConfig, MediumConfig, ReplayConfig, TraceConfig
from kvtier.config.words import (
    choose,
    join,
    mapping,
    mistake,
    refuse_odd,
    refuse_unknown,
    section,
    translate,
    unit,
)
from kvtier.errors import ConfigError
from kvtier.hook import HookKind
from kvtier.registry import find_callable
from kvtier.tier import AskedTier, Tier
from kvtier.types import WriteMode
from kvtier.units import parse_count, parse_nbytes, parse_room, parse_seconds

_TIER_KEYS = (
    *("name", "kind", "capacity", "numa", "eviction", "admission"),
    *("codec", "write", "deadline", "depth", "medium", "wrappers"),
)
_TOP_KEYS = tuple(name.removesuffix("_s") for name in Config.__struct_fields__)
_HOOK_KEYS = (*HookKind, "budget", "failures", "vetoes")
MEDIUM_UNITS = {"read": parse_nbytes, "write": parse_nbytes, "latency": parse_seconds}
_LEAST_CAPACITY = 1 << 16  # that a plain number of bytes can be
IO_UNITS = {"idle_write": parse_nbytes}
REPLAY_UNITS = {"kv_bytes_per_token": parse_nbytes, "prefill_knee": parse_count}
NOT_FOR_DRAM = {
    "codec": "its slots hold raw bytes",
    "write": "it says when chunks go down into a tier",
    "deadline": "nobody waits to read from it",
    "depth": "no thread of the I/O process works on it",
    "wrappers": "they wrap what reads and writes records",
}


NOT_FOR_ASKED = {
    "capacity": "its server says how much it holds, and removes what is too much",
    "eviction": "its server chooses what leaves",
    "wrappers": "they wrap tiers of this machine",
}


def parse(raw: object, *, here: bool = True) -> Config:
    """Turn decoded YAML into a checked configuration; the first mistake is a ConfigError.

    What is not to run `here` is not held against this machine.
    """
    refuse_odd(raw)
    top = section(raw, "", _TOP_KEYS, {"max_wait": parse_seconds})
    if top.get("chunk_tokens") == "auto":
        del top["chunk_tokens"]
    if "store" in top:
        choose(top["store"], ("all", "prompt"), "store")
    if "load" in top:
        choose(top["load"], ("auto", "always"), "load")
    if "io" in top:
        top["io"] = section(top["io"], "io", IoConfig.__struct_fields__, IO_UNITS)
    if top.get("trace") is not None:
        top["trace"] = _trace(top["trace"], here=here)
    if "replay" in top:
        fields = ReplayConfig.__struct_fields__
        top["replay"] = section(top["replay"], "replay", fields, REPLAY_UNITS)
    if "hooks" in top:
        top["hooks"] = _hooks(top["hooks"])
    _plugins(top, "prefetch", "prefetch", "prefetch")
    if isinstance(tiers := top.get("tiers"), list | tuple):
        top["tiers"] = [_tier(tier, index, here) for index, tier in enumerate(tiers)]
    top |= {"max_wait_s": top.pop("max_wait")} if "max_wait" in top else {}
    try:
        config = msgspec.convert(top, Config)
    except msgspec.ValidationError as exc:
        raise translate(exc, "") from exc
    check(config, here=here)
    return config


def _hooks(raw: object) -> dict[str, object]:
    hooks = section(raw, "hooks", _HOOK_KEYS, {"budget": parse_seconds})
    if "budget" in hooks:
        hooks["budget_s"] = hooks.pop("budget")
    for kind in HookKind:
        named = hooks.get(kind, ())
        for i, name in enumerate(named if isinstance(named, list | tuple) else ()):
            _callable(name, f"hooks.{kind}[{i}]")
    return hooks


def _trace(raw: object, *, here: bool) -> dict[str, object]:
    """Read the section `trace`; the first mistake is a ConfigError. The file's directory must be there."""
    made = section(raw, "trace", TraceConfig.__struct_fields__, {})
    if isinstance(record := made.get("record"), str):
        _no_nul(record, "trace.record")
        if not os_path.isabs(record):
            raise mistake(
                "trace.record",
                f"{record!r} is not absolute: the engine's processes may start elsewhere",
            )
        if here and not os_path.isdir(os_path.dirname(record)):
            directory = os_path.dirname(record)
            raise mistake("trace.record", f"there is no directory {directory!r}")
        if os_path.isdir(record):
            raise mistake("trace.record", f"{record!r} is a directory, not a file")
    return made


def _medium(raw: object, path: str) -> dict[str, object]:
    """Read how fast the tier at `path` is; the first mistake is a ConfigError."""
    given = {key: value for key, value in mapping(raw, path).items() if value is not None}
    made = section(given, path, (*MEDIUM_UNITS, "ratio"), MEDIUM_UNITS)
    if "latency" in made:
        made["latency_s"] = made.pop("latency")
    assert made.keys() <= set(MediumConfig.__struct_fields__)
    return made


def _callable(name: object, path: str) -> None:
    if isinstance(name, str):
        try:
            find_callable(name)
        except ConfigError as exc:
            raise mistake(path, exc) from exc.__cause__


def _tier(raw: object, index: int, here: bool) -> dict[str, object]:
    path = f"tiers[{index}]"
    given = dict(mapping(raw, path))
    tier = {key: given.pop(key) for key in _TIER_KEYS if key in given}
    kind = tier.get("kind")
    if not isinstance(kind, str):
        raise mistake(join(path, "kind"), "missing" if kind is None else f"{kind!r} is not a name")
    tier.setdefault("name", kind)
    for key in ("capacity", "depth", "numa"):
        if key in tier and tier[key] in (None, "auto"):
            del tier[key]
    if isinstance(tier.get("numa"), int):
        tier["numa"] = [tier["numa"]]
    unit(tier, "capacity", partial(parse_room, least=_LEAST_CAPACITY), path)
    unit(tier, "deadline", parse_seconds, path)
    _parts(tier, path)
    if index == 0:
        _dram(tier, given, path)
    else:
        _lower(tier, kind, given, path, here)
        _directory(tier["options"], join(path, "path"), here)
    if "deadline" in tier:
        tier["deadline_s"] = tier.pop("deadline")
    return tier


def _parts(tier: dict[str, object], path: str) -> None:
    """Read what of a tier is more than a value."""
    for key in ("eviction", "admission"):
        if key in tier:
            tier[key] = plugin(key, tier[key], join(path, key))
    if "codec" in tier:
        tier["codec"] = codec(tier["codec"], join(path, "codec"))
    if tier.get("medium") is not None:
        tier["medium"] = _medium(tier["medium"], join(path, "medium"))
    _plugins(tier, "wrappers", "wrapper", join(path, "wrappers"))


def _dram(tier: dict[str, object], given: dict[str, object], path: str) -> None:
    """Check what only tier 0 is asked: that it is the DRAM, and nothing but slots."""
    if tier["kind"] != "dram":
        raise mistake(join(path, "kind"), f"the first tier is always 'dram', got {tier['kind']!r}")
    refuse_unknown(given, (), path, also=_TIER_KEYS)
    if isinstance(known := tier.get("medium"), dict):
        tier["medium"] = {**msgspec.to_builtins(ARENA), **known}
    for key, why in NOT_FOR_DRAM.items():
        if key in tier:
            raise mistake(join(path, key), f"not for dram: {why}; put it on a lower tier")


def _lower(
    tier: dict[str, object], kind: str, given: dict[str, object], path: str, here: bool
) -> None:
    """Check a lower tier's own options; what outlives the engine is written behind by default."""
    if kind == "dram":
        raise mistake(join(path, "kind"), "only the first tier is 'dram'")
    tier_class = find("tier", kind, join(path, "kind"))
    assert issubclass(tier_class, Tier)
    tier["options"] = options(tier_class, given, path, also=_TIER_KEYS)
    if "numa" in tier and not tier_class.takes_numa:
        raise mistake(join(path, "numa"), f"{kind!r} keeps nothing in memory that could be bound")
    if issubclass(tier_class, AskedTier):
        _asked(tier, path)
        tier_class.refuse(mapping(tier["options"], path), path, here=here)
    tier["persistent"] = tier_class.persistent
    if "write" in tier:
        choose(tier["write"], WriteMode, join(path, "write"))
    elif tier_class.persistent:
        tier["write"] = WriteMode.IDLE


def _asked(tier: dict[str, object], path: str) -> None:
    """Check a tier that other engines use too: how much it holds, and what leaves it, is its server's."""
    for key, why in NOT_FOR_ASKED.items():
        if key in tier:
            raise mistake(join(path, key), f"not for {tier['kind']}: {why}")
    if "zstd_dict" in repr(tier.get("codec")):
        raise mistake(
            join(path, "codec"), "zstd_dict keeps dictionaries that no other engine would find"
        )
    if tier.get("write") == WriteMode.ON_EVICT:
        raise mistake(
            join(path, "write"),
            f"'on_evict' is not for {tier['kind']}: no chunk waits in DRAM for a network; use idle, through or on_reuse",
        )


def _is_no_directory(path: str) -> bool:
    """Whether that is certain: a disk that is ill, or does not answer, may have it."""
    try:
        return not S_ISDIR(stat(path).st_mode)
    except OSError as exc:
        return exc.errno in (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)


def _no_nul(file: str, path: str) -> None:
    if "\0" in file:
        raise mistake(path, f"{file!r} has a NUL in it, which no path can")


def _directory(options: object, path: str, here: bool) -> None:
    """Refuse a directory that cannot be made; the tier itself finds out whether it may write there."""
    directory = options.get("path") if isinstance(options, dict) else None
    if not isinstance(directory, str):
        return
    _no_nul(directory, path)
    place = os_path.normpath(directory)
    parent = os_path.dirname(place)
    if not os_path.isabs(directory):
        raise mistake(
            path, f"{directory!r} is not absolute: the engine's processes may start elsewhere"
        )
    if not place.strip("/"):
        raise mistake(path, f"{directory!r} is the root of all; give a directory of its own in it")
    if not here:
        return
    if _is_no_directory(parent):
        raise mistake(path, f"there is no directory {parent!r} to make {directory!r} in")
    if os_path.exists(directory) and not os_path.isdir(directory):
        raise mistake(path, f"{directory!r} is not a directory")
    if os_path.islink(directory) and _is_no_directory(directory):
        raise mistake(path, f"{directory!r} is a link to nothing")


def _plugins(raw: dict[str, object], key: str, kind: str, path: str) -> None:
    if isinstance(listed := raw.get(key), list | tuple):
        raw[key] = [plugin(kind, each, f"{path}[{i}]") for i, each in enumerate(listed)]
