"""Texts and values that are nearly right."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

_SPECIAL = (
    *("\0", "\x1b[31m", "\n", "\r", "\t", "\u2028", "\ufeff", "\x85", "é", "\U0001f600", "'", '"'),
    *("[", "]", "{", "}", ":", ",", "-", "#", "&a ", "*a", "!!int ", "!!python/name:os.system "),
    *("? ", "| ", "<<: ", "%", "@", "`", "~", "null", ".nan", ".inf", "-.inf", "1e999", "0x1g"),
    *("2024-30-01", "12:99:99", "9" * 5000, "x" * 5000, "-1", "0", "1e308", "18446744073709551616"),
    *("\\ud800", "NaN", "Infinity", "true", "_", "1_0", "\uff10", "4294967296"),
)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["", "\0", "x" * 3000, "\ud800", "a\nb"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@st.composite
def texts(draw: Callable[..., Any], sources: Sequence[str]) -> str:
    """Take one of the sources and change it in one to four places."""
    text: str = draw(st.sampled_from(sources))
    for _ in range(draw(st.integers(1, 4))):
        at, upto = (draw(st.integers(0, len(text))) for _ in range(2))
        new = draw(st.sampled_from(_SPECIAL) | st.text(max_size=4))
        kind = draw(st.sampled_from(("insert", "replace", "cut", "repeat", "word")))
        end = max(at, min(upto, at + 12))
        if kind == "insert":
            text = text[:at] + new + text[at:]
        elif kind == "cut":
            text = text[:at] + text[end:]
        elif kind == "repeat":
            text = text[:end] + text[at:]
        elif kind == "word":
            text = _replace_word(text, at, new)
        else:
            text = text[:at] + new + text[end:]
    return text


def _replace_word(text: str, at: int, new: str) -> str:
    """Put something in the place of a whole value or key."""
    start = max(text.rfind(mark, 0, at) for mark in " :,[{\n") + 1
    ends = [found for mark in " :,]}\n" if (found := text.find(mark, at)) >= 0]
    return text[:start] + new + text[min(ends, default=len(text)) :]


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """List the path of every part of decoded JSON."""
    found = [path]
    if isinstance(value, dict | list):
        named = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in named:
            found += places(part, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], new: object) -> object:
    """Copy decoded JSON with another part at `path`."""
    if not path:
        return new
    made = value.copy()
    made[path[0]] = put(value[path[0]], path[1:], new)
    return made


@st.composite
def values(draw: Callable[..., Any], source: object) -> object:
    """Take decoded JSON and put anything in the place of one or two of its parts, or beside them."""
    made = source
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(made)))
        new = draw(JSON | st.sampled_from(_SPECIAL))
        made = put(made, path, new)
        if isinstance(made, dict) and draw(st.integers(0, 9)) == 0:
            made = {**made, draw(st.text(max_size=5)): draw(JSON)}
    return made


def readable(exc: BaseException) -> None:
    """Assert that a refusal is one short line."""
    assert str(exc).isprintable(), repr(str(exc))
    assert len(str(exc)) < 1100
