"""The sections `replay:` and `trace:`: what traces are replayed with, and where they are recorded."""

import os.path
from collections.abc import Mapping, Sequence

from kvtier.config.structs import MediumConfig, ReplayConfig, TraceConfig
from kvtier.config.words import join, mapping, mistake, refuse_unknown, unit
from kvtier.units import parse_count, parse_nbytes, parse_seconds

_MEDIUM_KEYS = ("read", "write", "latency", "ratio")


def tiers_named(tiers: object) -> list[str]:
    """List the names of the tiers, as far as they have one."""
    if not isinstance(tiers, list | tuple):
        return []
    given = [tier for tier in tiers if isinstance(tier, Mapping)]
    return [str(tier.get("name", tier.get("kind"))) for tier in given]


def replay(raw: object, names: Sequence[str]) -> dict[str, object]:
    """Read the section `replay`.

    Raises:
        ConfigError: the first mistake.
    """
    made = dict(mapping(raw, "replay"))
    refuse_unknown(made, ReplayConfig.__struct_fields__, "replay")
    unit(made, "kv_bytes_per_token", parse_nbytes, "replay")
    unit(made, "prefill_knee", parse_count, "replay")
    if "tiers" in made:
        tiers = mapping(made["tiers"], "replay.tiers")
        refuse_unknown(tiers, names, "replay.tiers")
        made["tiers"] = {
            key: _medium(tier, join("replay.tiers", key)) for key, tier in tiers.items()
        }
    return made


def trace(raw: object) -> dict[str, object]:
    """Read the section `trace`; the file's directory must be there.

    Raises:
        ConfigError: the first mistake.
    """
    made = dict(mapping(raw, "trace"))
    refuse_unknown(made, TraceConfig.__struct_fields__, "trace")
    if isinstance(record := made.get("record"), str):
        if not os.path.isabs(record):
            raise mistake(
                "trace.record",
                f"{record!r} is not absolute: the engine's processes may start elsewhere",
            )
        if not os.path.isdir(os.path.dirname(record)):
            directory = os.path.dirname(record)
            raise mistake("trace.record", f"there is no directory {directory!r}")
        if os.path.isdir(record):
            raise mistake("trace.record", f"{record!r} is a directory, not a file")
    return made


def _medium(raw: object, path: str) -> dict[str, object]:
    made = dict(mapping(raw, path))
    refuse_unknown(made, _MEDIUM_KEYS, path)
    unit(made, "read", parse_nbytes, path)
    unit(made, "write", parse_nbytes, path)
    unit(made, "latency", parse_seconds, path)
    if "latency" in made:
        made["latency_s"] = made.pop("latency")
    assert made.keys() <= set(MediumConfig.__struct_fields__)
    return made
