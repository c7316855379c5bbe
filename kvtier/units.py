"""Sizes and durations as people write them. The only parser of either."""

import re

_NBYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?\s*")
_SECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h)\s*")
_DECIMAL = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?[Bb]?\s*", re.IGNORECASE)

_COUNT = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?)\s*(k|K|M|G|Ki|Mi|Gi)?\s*")

_MOST = 2**63 - 1  # that every format on the way can write

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_COUNTS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_TIMES = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_nbytes(value: object) -> int:
    """Read `64GiB`, `512MiB` or a plain number of bytes; else a ValueError says what to write."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return int(_bounded(value))
    if isinstance(value, str) and (match := _NBYTES.fullmatch(value)):
        return int(_bounded(float(match[1]) * _UNITS[match[2] or "B"]))
    if isinstance(value, str) and (match := _DECIMAL.fullmatch(value)):
        raise ValueError(
            f"{value!r} is not a size (did you mean '{match[1]}{match[2].upper()}iB'?)"
        )
    raise ValueError(
        f"{value!r} is not a size; write for example 64GiB, 512MiB or a number of bytes"
    )


def parse_room(value: object, *, least: int = 1 << 20) -> int:
    """Read a size as `parse_nbytes` does, of what is to hold chunks: a plain number below `least` lacks its unit."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < least:
        raise ValueError(f"{value} bytes hold no chunk (did you mean '{value}GiB'?)")
    return parse_nbytes(value)


def parse_seconds(value: object) -> float:
    """Read `2s`, `500ms` or a plain number of seconds, more than zero; else a ValueError says what to write."""
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _SECONDS.fullmatch(value)):
        seconds = float(match[1]) * _TIMES[match[2]]
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{value!r} is not a duration; write for example 2s or 500ms")
    return seconds


def format_nbytes(nbytes: float) -> str:
    """Write a size with the largest unit that leaves at least 1, to three digits: `1.5GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if nbytes >= _UNITS[unit]:
            return f"{nbytes / _UNITS[unit]:.4g}{unit}"
    return f"{nbytes:.0f}B"


def parse_count(value: object) -> int:
    """Read `3M`, `128k`, `64Ki` (a power of two) or a plain number, at least 1; else a ValueError says what to write."""
    count = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif isinstance(value, str) and (match := _COUNT.fullmatch(value)):
        count = float(match[1].replace("_", "")) * _COUNTS[match[2] or ""]
    if count < 1:
        raise ValueError(f"{value!r} is not a number of tokens; write for example 3M, 128k or 64Ki")
    return int(_bounded(count))


def format_count(count: int) -> str:
    """Write a number of tokens with the largest unit that leaves at least 1, to three digits: `1.5M`."""
    for unit in ("G", "M", "k"):
        if count >= _COUNTS[unit]:
            return f"{count / _COUNTS[unit]:.4g}{unit}"
    return str(count)


def _bounded(value: float) -> float:
    if value > _MOST:
        said = f"{value:g}" if isinstance(value, float) or value < 10**300 else "such a number"
        raise ValueError(f"{said} is more than anything can hold")
    return value
