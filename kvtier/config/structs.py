"""What a configuration is once it was checked: frozen, plain values, the same in every process."""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct


class WriteMode(StrEnum):
    """When a chunk goes down into a tier."""

    ON_EVICT = "on_evict"  # when it leaves tier 0
    ON_REUSE = "on_reuse"  # when it was hit a second time
    THROUGH = "through"  # as soon as it is stored
    IDLE = "idle"  # as soon as it is stored, when nothing else is to do


class Plugin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plugin by name, with its own options as its `Config` decoded and completed them."""

    kind: str
    options: Mapping[str, object] = {}


class TierConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier: what it is, how much of it, and who decides what it holds."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    kind: str
    capacity: int | None = (
        None  # bytes per engine and node; None, only for dram: see default_dram_nbytes
    )
    numa: tuple[int, ...] | None = None  # None: the rank's own node
    eviction: Plugin = Plugin(kind="lru")
    admission: Plugin = Plugin(kind="always")
    codec: Plugin = Plugin(kind="raw")
    write: WriteMode = WriteMode.ON_EVICT
    deadline_s: float = 2.0  # a read that takes longer is a miss
    options: Mapping[str, object] = {}  # the tier kind's own, `path` for example
    wrappers: tuple[Plugin, ...] = ()  # innermost first
    persistent: bool = False  # what it holds outlives the engine; its class says so, not the file


class IoConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's I/O process."""

    threads: Annotated[int, Meta(ge=2, le=256)] = 8
    idle_write: Annotated[int, Meta(ge=1)] = 256 << 20  # bytes per second of write-behind
    queue: Annotated[int, Meta(ge=1)] = 4096  # operations that may wait


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration; `tiers[0]` is always the DRAM of the arena."""

    chunk_tokens: Annotated[int, Meta(ge=1)] | None = None  # None: kvtier.chunking decides
    store: Literal["all", "prompt"] = "all"
    load: Literal["auto", "always"] = "auto"  # auto: computing wins where it is the faster way
    weights_id: str = "auto"
    persist_lora: bool = False
    prefetch: Annotated[tuple[Plugin, ...], Meta(max_length=1)] = ()
    tiers: tuple[TierConfig, ...] = (TierConfig(name="dram", kind="dram"),)
    io: IoConfig = IoConfig()


def to_builtins(config: Config | TierConfig) -> dict[str, object]:
    """Turn a configuration into dicts, tuples, strings and numbers, for any wire."""
    builtins: dict[str, object] = msgspec.to_builtins(config)
    return builtins


def from_builtins(builtins: Mapping[str, object]) -> Config:
    """Rebuild what `to_builtins` took apart; checks types only, never the machine."""
    return msgspec.convert(builtins, Config)


def digest(config: Config) -> str:
    """Hash a configuration: equal in two processes if, and only if, they run with the same one."""
    encoded = msgspec.json.encode(config, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()
