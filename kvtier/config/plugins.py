"""Plugins as a configuration names them, their options checked by their own `Config`.

A plugin class declares its options as a msgspec struct or a dataclass in its attribute `Config`;
a class without one takes none.
"""

from collections.abc import Mapping, Sequence

import msgspec

from kvtier import registry
from kvtier.config.words import describe, join, mistake, refuse_unknown, translate
from kvtier.errors import ConfigError


def plugin(kind: str, raw: object, path: str) -> dict[str, object]:
    """Read `lru` or `{kind: lru, ghost: 2}`; an unknown plugin, or a wrong option, is a ConfigError."""
    if isinstance(raw, str):
        raw = {"kind": raw}
    if not isinstance(raw, Mapping):
        raise mistake(path, f"expected the name of a plugin or a mapping, got {describe(raw)}")
    name = raw.get("kind")
    if not isinstance(name, str):
        raise mistake(join(path, "kind"), "missing" if name is None else f"{name!r} is not a name")
    given = {key: value for key, value in raw.items() if key != "kind"}
    return {"kind": name, "options": options(find(kind, name, path), given, path, also=("kind",))}


def find(kind: str, name: str, path: str) -> type:
    """Look a plugin up; without one a ConfigError names its place in the configuration."""
    try:
        return registry.lookup(kind, name)
    except ConfigError as exc:
        raise mistake(path, exc) from exc.__cause__


def options(
    plugin_class: type, raw: Mapping[str, object], path: str, *, also: Sequence[str]
) -> dict[str, object]:
    """Check a plugin's options and fill in their defaults; a mistake is a ConfigError. `also` are the keys around them."""
    struct: type | None = getattr(plugin_class, "Config", None)
    if struct is None:
        refuse_unknown(raw, (), path, also=also)
        return {}
    refuse_unknown(raw, _fields(struct), path, also=also)
    try:
        checked: object = msgspec.convert(raw, struct)
    except msgspec.ValidationError as exc:
        raise translate(exc, path) from exc
    complete: dict[str, object] = msgspec.to_builtins(checked)
    return complete


def _fields(struct: type) -> list[str]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType | msgspec.inspect.DataclassType)
    return [field.encode_name for field in info.fields]
