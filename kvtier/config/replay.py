"""The section `trace:`, and `medium:` of a tier: where requests are recorded, and how fast a tier is."""

import os.path

from kvtier.config.structs import MediumConfig, TraceConfig
from kvtier.config.words import mapping, mistake, section
from kvtier.units import parse_nbytes, parse_seconds

_MEDIUM_KEYS = ("read", "write", "latency", "ratio")
_MEDIUM_UNITS = {"read": parse_nbytes, "write": parse_nbytes, "latency": parse_seconds}


def trace(raw: object, *, here: bool) -> dict[str, object]:
    """Read the section `trace`; the first mistake is a ConfigError. The file's directory must be there."""
    made = section(raw, "trace", TraceConfig.__struct_fields__, {})
    if isinstance(record := made.get("record"), str):
        if not os.path.isabs(record):
            raise mistake(
                "trace.record",
                f"{record!r} is not absolute: the engine's processes may start elsewhere",
            )
        if here and not os.path.isdir(os.path.dirname(record)):
            directory = os.path.dirname(record)
            raise mistake("trace.record", f"there is no directory {directory!r}")
        if os.path.isdir(record):
            raise mistake("trace.record", f"{record!r} is a directory, not a file")
    return made


def medium(raw: object, path: str) -> dict[str, object]:
    """Read how fast the tier at `path` is; the first mistake is a ConfigError."""
    given = {key: value for key, value in mapping(raw, path).items() if value is not None}
    made = section(given, path, _MEDIUM_KEYS, _MEDIUM_UNITS)
    if "latency" in made:
        made["latency_s"] = made.pop("latency")
    assert made.keys() <= set(MediumConfig.__struct_fields__)
    return made
