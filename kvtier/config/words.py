"""Mistakes in words: where, what, and what was probably meant."""

import math
import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

from kvtier.errors import ConfigError
from kvtier.registry import nearest

_DECODING = re.compile(r"(?P<what>.*?)(?: - at `(?P<at>[^`]*)`)?", re.DOTALL)
_BOUNDED = re.compile(r"Expected `(?P<want>\w+)` (?P<bound>.*)", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DEEPEST = 24
_MOST_VALUES = 10_000
_SHOWN = 60  # characters of a path that goes in circles
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
    "NoneType": "nothing",
}


def join(path: str, key: str) -> str:
    """Name `key` below `path`: `tiers[1]` and `capacity` make `tiers[1].capacity`."""
    return f"{path}.{key}" if path and not key.startswith("[") else path + key


def mistake(path: str, what: object) -> ConfigError:
    """Make the error for one mistake."""
    error = ConfigError(f"{path}: {what}" if path else str(what))
    error.place = path
    return error


def refuse_odd(value: object) -> None:
    """Raise a ConfigError for what no configuration has, options of plugins included.

    That is a number that is not finite, a character that cannot be written, a part of itself, and thousands of
    values: YAML can name a part from several places, so that a short file is long when it is written out.
    """
    _weigh(value, "", {}, 0)


def _weigh(value: object, path: str, known: dict[int, int], depth: int) -> int:
    """Count the values in `value`; each part is looked at once, however often it is named."""
    if isinstance(value, float) and not math.isfinite(value):
        raise mistake(path, f"expected a finite number, got {value}")
    if isinstance(value, str) and _SURROGATE.search(value):
        raise mistake(path, "there is a character in it that no text can have")
    if not isinstance(value, Mapping | list | tuple):
        return 1
    if depth == _DEEPEST:
        raise mistake(path[:_SHOWN], "nested too deeply, or within itself")
    if id(value) not in known:
        total = 1
        named = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in named:
            _weigh(key, path, known, depth + 1)
            below = join(path, str(key)) if isinstance(value, Mapping) else f"{path}[{key}]"
            total += _weigh(part, below, known, depth + 1)
            if total > _MOST_VALUES:
                raise mistake(path, f"more than {_MOST_VALUES:,} values when it is written out")
        known[id(value)] = total
    return known[id(value)]


def refuse_unknown(
    raw: Mapping[str, object], known: Iterable[str], path: str, *, also: Iterable[str] = ()
) -> None:
    """Raise a ConfigError for the first key that is not known; it names the nearest of `known` and `also`."""
    words = list(known)
    for key in raw:
        if key not in words:
            close = nearest(str(key), [*words, *also])
            raise mistake(join(path, str(key)), f"unknown key{close}")


def choose(value: object, known: Iterable[str], path: str) -> str:
    """Return `value` if it is one of `known`; else a ConfigError lists them."""
    words = list(known)
    if isinstance(value, str) and value in words:
        return value
    raise mistake(path, f"{value!r} is not one of {', '.join(words)}{nearest(str(value), words)}")


def mapping(value: object, path: str) -> Mapping[str, object]:
    """Return `value` if it is a mapping; else a ConfigError names what it is."""
    if isinstance(value, Mapping):
        return value
    raise mistake(path, f"expected a mapping, got {describe(value)}")


def unit(raw: dict[str, object], key: str, read: Callable[[object], float], path: str) -> None:
    """Replace `raw[key]`, if it is there, by what `read` makes of it; what `read` refuses is a ConfigError."""
    if raw.get(key) is not None:
        try:
            raw[key] = read(raw[key])
        except ValueError as exc:
            raise mistake(join(path, key), exc) from exc


def section(
    raw: object, path: str, known: Iterable[str], units: Mapping[str, Callable[[object], float]]
) -> dict[str, object]:
    """Read a mapping that has no other keys than `known`; `units` read the values that are written with a unit."""
    made = dict(mapping(raw, path))
    refuse_unknown(made, known, path)
    for key, read in units.items():
        unit(made, key, read, path)
    return made


def describe(value: object) -> str:
    """Name the type of a decoded value as a YAML writer would."""
    name = type(value).__name__
    if isinstance(value, list | tuple):
        name = "array"
    elif isinstance(value, Mapping):
        name = "object"
    return _TYPES.get(name, name)


def translate(error: msgspec.ValidationError, path: str) -> ConfigError:
    """Say a decoding error in the words of the file."""
    match = _DECODING.fullmatch(str(error))
    assert match is not None
    at = (match["at"] or "").removeprefix("$").removeprefix(".")
    where = join(path, at) if at else path
    what = match["what"]
    if found := _MISSING.fullmatch(what):
        return mistake(join(where, found["key"]), "missing")
    if found := _UNKNOWN.fullmatch(what):
        return mistake(join(where, found["key"]), "unknown key")
    if found := _EXPECTED.fullmatch(what):
        wants = [_TYPES.get(word, word) for word in found["want"].split(" | ") if word != "null"]
        got = _TYPES.get(found["got"], found["got"])
        return mistake(where, f"expected {' or '.join(wants)}, got {got}")
    if found := _BOUNDED.fullmatch(what):
        return mistake(
            where, f"expected {_TYPES.get(found['want'], found['want'])} {found['bound']}"
        )
    return mistake(where, what[:1].lower() + what[1:].replace("`", ""))
