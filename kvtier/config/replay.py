"""The sections `replay:` and `trace:`, and `medium:` of a tier: what replays go by, and where they are recorded."""

import os.path

from kvtier.config.structs import MediumConfig, ReplayConfig, TraceConfig
from kvtier.config.words import mapping, mistake, refuse_unknown, unit
from kvtier.units import parse_count, parse_nbytes, parse_seconds

_MEDIUM_KEYS = ("read", "write", "latency", "ratio")


def replay(raw: object) -> dict[str, object]:
    """Read the section `replay`; the first mistake is a ConfigError."""
    made = dict(mapping(raw, "replay"))
    refuse_unknown(made, ReplayConfig.__struct_fields__, "replay")
    unit(made, "kv_bytes_per_token", parse_nbytes, "replay")
    unit(made, "prefill_knee", parse_count, "replay")
    return made


def trace(raw: object, *, here: bool) -> dict[str, object]:
    """Read the section `trace`; the first mistake is a ConfigError. The file's directory must be there."""
    made = dict(mapping(raw, "trace"))
    refuse_unknown(made, TraceConfig.__struct_fields__, "trace")
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
    made = {key: value for key, value in mapping(raw, path).items() if value is not None}
    refuse_unknown(made, _MEDIUM_KEYS, path)
    unit(made, "read", parse_nbytes, path)
    unit(made, "write", parse_nbytes, path)
    unit(made, "latency", parse_seconds, path)
    if "latency" in made:
        made["latency_s"] = made.pop("latency")
    assert made.keys() <= set(MediumConfig.__struct_fields__)
    return made
