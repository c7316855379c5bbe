"""What a configuration is once it was checked: frozen, plain values, the same in every process."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from kvtier.registry import Plugin
from kvtier.types import WriteMode

_GIB = 1 << 30
_MOST = 1e18  # tokens, or tokens per second: finite is what counts

LEAST_QUEUE = 4096
"""Operations of one tier: as many as the brain has under way at most."""

MOST_THREADS = 256
"""Of one I/O process."""


class MediumConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast a tier is: what the live engine starts from and then measures, what the replayer goes by."""

    read: Annotated[float, Meta(gt=0)] = (
        5.0 * _GIB
    )  # bytes per second, upwards; dram: to the device
    write: Annotated[float, Meta(gt=0)] = 2.0 * _GIB
    latency_s: Annotated[float, Meta(ge=0)] = 2e-4
    ratio: Annotated[float, Meta(gt=0, le=1)] = 1.0  # bytes of a record by bytes of its chunk


ARENA = MediumConfig(read=25.0 * _GIB, write=25.0 * _GIB, latency_s=2e-5)
"""What tier 0 is taken to be: copies over PCIe 4.0 x16."""


class TierConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier: what it is, how much of it, and who decides what it holds."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")]
    kind: str
    # Bytes per engine and node; None, only for dram: see kvtier.config.shares.
    capacity: int | None = None
    numa: tuple[int, ...] | None = None  # None: the rank's own node
    eviction: Plugin = Plugin(kind="lru")
    admission: Plugin = Plugin(kind="always")
    codec: Plugin = Plugin(kind="raw")
    write: WriteMode = WriteMode.ON_EVICT
    deadline_s: float = 2.0  # without a read that is done; then those that wait are misses
    # Operations at a time; None: what threads allow.
    depth: Annotated[int, Meta(ge=2)] | None = None
    medium: MediumConfig | None = None  # None: the live engine finds out, the replayer assumes
    options: Mapping[str, object] = {}  # the tier kind's own, `path` for example
    wrappers: tuple[Plugin, ...] = ()  # innermost first
    persistent: bool = False  # what it holds outlives the engine; its class says so, not the file


class IoConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's I/O process."""

    threads: Annotated[int, Meta(ge=2, le=MOST_THREADS)] = 8
    idle_write: Annotated[int, Meta(ge=1)] = 256 << 20  # bytes per second of write-behind
    queue: Annotated[int, Meta(ge=LEAST_QUEUE)] = LEAST_QUEUE  # of each tier, that may wait


class TraceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a live engine writes down of its own traffic: hashes and times, no text."""

    record: str  # a file; one line per request is appended
    queue: Annotated[int, Meta(ge=1)] = 4096  # lines that may wait for the disk; more are dropped


class ReplayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `kvtier replay` assumes of the model and the engine; the live engine does not read it."""

    # Of all layers: Llama 3.1 8B in bfloat16.
    kv_bytes_per_token: Annotated[int, Meta(ge=1)] = 128 << 10
    # Tokens per second without context, and the context at which attention costs as much as the rest.
    prefill_rate: Annotated[float, Meta(gt=0, le=_MOST)] = 10_000.0
    prefill_knee: Annotated[float, Meta(gt=0, le=_MOST)] = 24_576.0
    decode_rate: Annotated[float, Meta(gt=0, le=_MOST)] = 50.0  # tokens per second and request


class HooksConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Callables of the user's, as `package.module:name`; see kvtier.hook."""

    on_insert: tuple[str, ...] = ()
    on_evict: tuple[str, ...] = ()
    on_demote: tuple[str, ...] = ()
    on_promote: tuple[str, ...] = ()
    on_hit: tuple[str, ...] = ()
    on_miss: tuple[str, ...] = ()
    budget_s: Annotated[float, Meta(gt=0)] = 1e-3  # of one call; longer is a failure
    failures: Annotated[int, Meta(ge=1)] = 3  # of one hook, until it is called no more
    vetoes: Annotated[int, Meta(ge=0)] = 16  # evictions that may be refused per choice of victims


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration; `tiers[0]` is always the DRAM of the arena."""

    chunk_tokens: Annotated[int, Meta(ge=1)] | None = None  # None: kvtier.chunking decides
    store: Literal["all", "prompt"] = "all"
    load: Literal["auto", "always"] = "auto"  # auto: computing wins where it is the faster way
    max_wait_s: float = 30.0  # of one request for its hit
    overlap: bool = False  # copies to the device start while the last reads of a hit are under way
    weights_id: str = "auto"
    persist_lora: bool = False
    prefetch: tuple[Plugin, ...] = ()  # all of them are asked, in this order
    tiers: tuple[TierConfig, ...] = (TierConfig(name="dram", kind="dram"),)
    hooks: HooksConfig = HooksConfig()
    io: IoConfig = IoConfig()
    trace: TraceConfig | None = None
    replay: ReplayConfig = ReplayConfig()


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
