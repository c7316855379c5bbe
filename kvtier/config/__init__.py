"""The configuration: one YAML or mapping -> frozen structs, or a `ConfigError` in words.

The structs are what every process of one engine must agree on; `digest` is how they check.
"""

from kvtier.config.load import load
from kvtier.config.shares import (
    clamped,
    default_dram_nbytes,
    dram_nbytes,
    of_rank,
    room,
    share,
    sharers,
)
from kvtier.config.structs import (
    ARENA,
    Config,
    HooksConfig,
    IoConfig,
    MediumConfig,
    ReplayConfig,
    TierConfig,
    TraceConfig,
    digest,
    from_builtins,
    to_builtins,
)
from kvtier.registry import Plugin

__all__ = [
    "ARENA",
    "Config",
    "HooksConfig",
    "IoConfig",
    "MediumConfig",
    "Plugin",
    "ReplayConfig",
    "TierConfig",
    "TraceConfig",
    "clamped",
    "default_dram_nbytes",
    "digest",
    "dram_nbytes",
    "from_builtins",
    "load",
    "of_rank",
    "room",
    "share",
    "sharers",
    "to_builtins",
]
