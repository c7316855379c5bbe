"""All mistakes of a configuration. Parsing stops at the first, so each is put right by a guess, and parsing goes on."""

import re
from collections.abc import Mapping

from kvtier.config.parse import parse
from kvtier.config.words import refuse_odd
from kvtier.errors import ConfigError
from kvtier.registry import meant

_MOST = 20
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def mistakes(raw: object, first: ConfigError, *, here: bool) -> list[str]:
    """Give the messages of what is wrong with decoded YAML, of which parsing said `first`; 20 at most.

    A mistake that a guess made is not among them: what its place says after it was put right is not told.
    """
    try:
        refuse_odd(raw)
    except ConfigError:
        return [str(first)]
    guess, found = _copy(raw), [first]
    told, error = {first.place}, first
    for _ in range(2 * _MOST):
        if not _put_right(guess, error, again=error is not found[-1]):
            break
        try:
            parse(guess, here=here)
            break
        except ConfigError as exc:
            error = exc
        if error.place not in told:
            found.append(error)
            told.add(error.place)
        if len(found) == _MOST:
            break
    return [str(each) for each in found]


def _copy(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list | tuple) else value


def _put_right(raw: object, error: ConfigError, *, again: bool) -> bool:
    """Change the value that is wrong: to what was meant, or to none, or its tier or section to one without mistakes.

    Say whether anything was changed. A place that is wrong `again` was changed before, in vain.
    """
    place = [int(index) if index else key for index, key in _STEP.findall(error.place)]
    if not again and _change(raw, place, error):
        return True
    return _replace(raw, place)


def _change(raw: object, place: list[int | str], error: ConfigError) -> bool:
    *above, last = place or [""]
    around = raw
    for step in above:
        try:
            around = around[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return False
    if not isinstance(around, dict) or (last not in around and last != "capacity"):
        return False
    word, message = meant(str(error)), str(error)
    if last not in around:  # the one key that most tiers must have
        around[last] = "1GiB"
    elif word is None:
        del around[last]
    elif ": unknown key" in message:
        around.setdefault(word, around.pop(last))
    elif isinstance(value := around[last], dict):
        value["kind"] = word
    else:
        around[last] = word
    return True


def _replace(raw: object, place: list[int | str]) -> bool:
    """Put a tier without mistakes into its place, or leave a section out."""
    if not isinstance(raw, dict) or not place or (top := place[0]) not in raw:
        return False
    tiers = raw[top]
    if top != "tiers" or not isinstance(tiers, list) or len(place) == 1:
        del raw[top]
        return top != "tiers"
    index = place[1]
    kind = {"kind": "memory", "capacity": "1MiB"} if index else {"kind": "dram"}
    if not isinstance(index, int) or index >= len(tiers):
        return False
    old, name = tiers[index], f"tier{index}"
    if isinstance(old, dict) and place[-1] != "name":
        name = old.get("name", name)
    tiers[index] = kind | {"name": name}
    changed: bool = tiers[index] != old
    return changed
