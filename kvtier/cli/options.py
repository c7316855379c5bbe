"""How values of options are read, and mistakes in them said with the option's name."""

import math
from collections.abc import Callable

from kvtier.errors import ConfigError


def read(parse: Callable[[object], int], words: str, option: str) -> int:
    """Read a size or a count; what is none is a ConfigError."""
    try:
        return parse(int(words) if words.isdigit() else words)
    except ValueError as exc:
        raise ConfigError(f"{option}: {exc}") from exc


def positive(option: str, value: float) -> None:
    """Raise a ConfigError for what is no finite number above 0."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{option}: {value:g} is not more than 0")
