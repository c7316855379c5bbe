"""What is counted and shown: the one table of counters, gauges and histograms, by field.

A field made by `counter`, `gauge` or `histogram` is a metric; the engine's metrics and docs/metrics.md follow from it.
To add a counter, add a field here and count in it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TypeVar

from kvtier.brain.breaker import BreakerState
from kvtier.brain.metric import (
    Metric,
    Samples,
    Tally,
    Value,
    counter,
    gauge,
    histogram,
    metrics,
    shown,
)
from kvtier.brain.operations import Operation
from kvtier.brain.why import OF_ASKED_TIERS, OF_STORES, OF_TOKENS, Why
from kvtier.types import NOT_TIERS, OpStatus

T = TypeVar("T", "CacheStats", "TierStats")

_MISSES = tuple(why for why in Why if why not in OF_ASKED_TIERS | OF_STORES)
_LOADS = tuple(why for why in _MISSES if why not in OF_TOKENS)
_KEPT_OUT = (Why.NOT_ADMITTED, Why.VETOED, Why.NO_ROOM)
_STORES = (*_KEPT_OUT, Why.ORPHAN, Why.STALE, Why.ADAPTER, Why.HINT, Why.ROLE)
_WRITES = (*_KEPT_OUT, Why.OPENING, Why.RESTING, Why.DETACHED, Why.FULL, Why.BUSY, Why.FAILED)

_PARTS = ("queue", "codec", "medium")
OPERATIONS_S = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STEPS_S = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)
GAPS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0)
WAITS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CAUSES = tuple(status for status in OpStatus if status is not OpStatus.OK)

OFF = Metric(
    "kvtier:off",
    "gauge",
    "1 while kvtier is off: it turned itself off, or this model's KV cannot be reused.",
)
MEMORY = Metric(
    "kvtier:memory_bytes",
    "gauge",
    "Bytes of memory by the NUMA node that they are really on.",
    ("tier", "node"),
)


INFO = Metric(
    "kvtier:info",
    "gauge",
    "1, with what this engine's kvtier is.",
    ("version", "chunk_tokens", "ranks", "namespace"),
)
IO_CPU = Metric(
    "kvtier:io_cpu_seconds",
    "counter",
    "Seconds of processor time of the I/O process of each rank.",
    ("rank",),
)


@dataclass(slots=True)
class TierStats:
    """One tier. Bytes are of all ranks together, seconds of the slowest."""

    name: str
    hits: int = counter("tier_hit_chunks", "Chunks that requests found in the tier.")
    reads: int = counter("tier_reads", "Chunks read up from the tier.")
    read_bytes: int = counter(
        "tier_read_bytes",
        "Bytes read from the tier, by all ranks.",
        alias="vllm:kv_offload_tiering_read_bytes",
    )
    read_seconds: float = counter(
        "tier_read_seconds", "Seconds in reads, summed.", alias="vllm:kv_offload_tiering_read_time"
    )
    writes: int = counter("tier_writes", "Chunks written to the tier.")
    write_bytes: int = counter(
        "tier_write_bytes",
        "Bytes written to the tier, by all ranks.",
        alias="vllm:kv_offload_tiering_write_bytes",
    )
    write_seconds: float = counter(
        "tier_write_seconds",
        "Seconds in writes, summed.",
        alias="vllm:kv_offload_tiering_write_time",
    )
    evictions: int = counter("tier_evictions", "Chunks that the tier gave up for room.")
    unread_bytes: int = counter(
        "tier_unread_evicted_bytes",
        "Bytes that the tier gave up for room and that nobody had read since they were written, of all ranks.",
    )
    spent: float = counter(
        "tier_spent_seconds",
        "Seconds that requests waited for what the tier had: for reads, in the first tier for copies to the device.",
    )
    wait: Samples = histogram(
        "tier_read_wait_seconds",
        "Seconds that a request waited for its reads, by the lowest tier that it read from.",
        WAITS_S,
    )
    operations: Samples = histogram(
        "tier_operation_seconds",
        "Seconds of a read or write: in the queue, in the codec with the checksum, and in the medium.",
        OPERATIONS_S,
        by="part",
        of=tuple(f"{way}_{part}" for way in ("read", "write") for part in _PARTS),
    )
    refused: Tally[Why] = counter(
        "tier_refused_chunks",
        "Chunks that left DRAM and that the tier did not take.",
        by="reason",
        of=_WRITES,
    )
    asks: int = counter(
        "tier_asks", "Questions to a tier that engines share: what it has of a request."
    )
    late_asks: int = counter(
        "tier_late_asks", "Of these, those whose request went on before the answer."
    )
    trips: int = counter("tier_trips", "Times that the tier was sent to rest.")
    failures: Tally[OpStatus] = counter(
        "tier_failures", "Operations on the tier that failed.", by="cause", of=_CAUSES
    )
    codecs: Tally[str] = counter(
        "tier_codec_writes", "Chunks written to the tier, by how they were encoded.", by="codec"
    )
    age: Samples = histogram(
        "tier_left_age_seconds",
        "Seconds that a chunk had been in the tier when it left; of one chunk in 64.",
        GAPS_S,
    )
    idle: Samples = histogram(
        "tier_left_idle_seconds",
        "Seconds since a chunk's last hit, or since it came, when it left the tier; of one chunk in 64.",
        GAPS_S,
    )
    capacity: int = gauge(
        "tier_capacity_bytes", "Capacity of the tier, as far as its medium has it, of all ranks."
    )
    short: int = gauge(
        "tier_short_bytes",
        "Bytes of the configured capacity that the medium has not, of all ranks.",
    )
    used: int = gauge(
        "tier_used_bytes", "Bytes in use, with what is being written and removed, of all ranks."
    )
    foreign: int = gauge("tier_foreign_bytes", "Bytes of other namespaces, of all ranks.")
    medium: float = gauge(
        "tier_medium_bytes_per_second",
        "Bytes a second at which all ranks together read on from the tier, as measured; 0 before.",
    )
    chunks: int = gauge("tier_chunks", "Chunks in the tier.")
    in_flight: int = gauge("tier_in_flight", "Operations in flight.")
    reads_in_flight: int = gauge(
        "tier_reads_in_flight",
        "Of these, reads.",
        alias="vllm:kv_offload_tiering_active_promotion_jobs",
    )
    writes_in_flight: int = gauge(
        "tier_writes_in_flight",
        "Of these, writes.",
        alias="vllm:kv_offload_tiering_active_cascade_jobs",
    )
    resting: int = gauge("tier_resting", "1 while the tier rests.")
    breaker: BreakerState = BreakerState.CLOSED

    def copy(self) -> "TierStats":
        """Keep the numbers of now."""
        return _copy_tier(self)

    def count_read(self, read: Operation) -> None:
        """Count a chunk that was read."""
        self.reads += 1
        self.read_bytes += read.total
        self.read_seconds += read.seconds
        self._time("read", read)

    def count_write(self, write: Operation) -> None:
        """Count a chunk that was written, and how it was encoded."""
        self.writes += 1
        self.write_bytes += write.total
        self.write_seconds += write.seconds
        if write.codec:
            self.codecs[write.codec] += 1
        self._time("write", write)

    def count_copies(self, loaded: int, load_s: float, stored: int, store_s: float) -> None:
        """Count bytes and seconds of copies to the device and from it."""
        self.read_bytes += loaded
        self.read_seconds += load_s
        self.write_bytes += stored
        self.write_seconds += store_s

    def count_wait(self, seconds: float) -> None:
        """Count how long a request waited for its reads."""
        self.wait.note(seconds)
        self.spent += seconds

    def _time(self, way: str, done: Operation) -> None:
        self.operations.note(done.queued, f"{way}_queue")
        self.operations.note(done.coded, f"{way}_codec")
        self.operations.note(max(0.0, done.seconds - done.coded), f"{way}_medium")


@dataclass(slots=True)
class CacheStats:
    """The whole brain."""

    tiers: tuple[TierStats, ...] = ()
    lookups: int = counter("lookup_calls", "Keys that the scheduler asked for, some several times.")
    stores: int = counter("stored_chunks", "Chunks copied in from the device.")
    loads: int = counter("loaded_chunks", "Chunks copied to the device.")
    load_refusals: Tally[Why] = counter(
        "load_refusals",
        "Requests whose hit ended before their prompt did.",
        by="reason",
        of=_LOADS,
    )
    store_refusals: Tally[Why] = counter(
        "store_refusals",
        "Chunks that were offered and not stored in DRAM.",
        by="reason",
        of=_STORES,
    )
    hook_failures: int = counter("hook_failures", "Calls of hooks that raised or took too long.")
    hooks_disabled: int = gauge("hooks_disabled", "Hooks that are called no more.")
    vetoes: int = counter("vetoes", "Entries and evictions that hooks refused.")
    evictions: int = counter("evictions", "Chunks that left DRAM.")
    demotions: int = counter("demotions", "Chunks that left DRAM downwards.")
    dropped: int = counter("dropped_chunks", "Chunks that left DRAM and are in no tier.")
    prefetches: int = counter("prefetches", "Chunks read ahead of a request.")
    prefetched_bytes: int = counter("prefetched_bytes", "Bytes read ahead.")
    useful_bytes: int = counter("prefetch_useful_bytes", "Of these, used later.")
    wasted_bytes: int = counter("prefetch_wasted_bytes", "Of these, never used.")
    resets: int = counter("resets", "Cache resets.")
    weight_changes: int = counter(
        "weight_changes", "Of these, because weights were changed in place."
    )
    reuse: Samples = histogram(
        "reuse_gap_seconds",
        "Seconds between two hits of a chunk, or until its first; of one chunk in 64.",
        GAPS_S,
    )
    regret: Samples = histogram(
        "evict_reuse_gap_seconds",
        "Seconds from when no tier had a chunk any more until it was there again; of one chunk in 64.",
        GAPS_S,
    )
    slots: int = gauge("slots", "Slots of the arena.")
    free_slots: int = gauge("free_slots", "Free slots of the arena.")
    quarantined_slots: int = gauge("quarantined_slots", "Slots that wait for an answer.")
    pinned: int = gauge("pinned_chunks", "Chunks that are pinned.")
    reading: int = gauge("reading_chunks", "Chunks on their way up.")
    requests: int = gauge("known_requests", "Requests that are known.")

    def copy(self) -> "CacheStats":
        """Keep the numbers of now."""
        return _copy_cache(self)


@dataclass(slots=True)
class EngineStats:
    """What the connector counts: what became of the prompts, token by token, and its own time."""

    tokens: Tally[str] = counter(
        "prompt_tokens",
        "Prompt tokens by where their KV came from: `hbm` is the device's own cache, `computed` none, "
        "`other` another connector.",
        by="tier",
        of=NOT_TIERS,
    )
    misses: Tally[Why] = counter(
        "misses", "Of the computed prompt tokens, why they are.", by="reason", of=_MISSES
    )
    saved: Tally[str] = counter(
        "saved_prefill_seconds",
        "Seconds that the engine would have computed for the tokens that a tier had, at its measured pace.",
        by="tier",
    )
    ttft: Samples = histogram(
        "ttft_seconds",
        "Seconds from a request's arrival to its first token, by the lowest tier that had some of its prompt.",
        WAITS_S,
        by="source",
        of=NOT_TIERS,
    )

    steps: Samples = histogram(
        "step_seconds",
        "Seconds of the scheduler's thread that the connector takes in an engine step: `lookup` in the queue, "
        "`order` for the ranks, `answer` from them.",
        STEPS_S,
        by="part",
        of=("lookup", "order", "answer"),
    )

    def show(self, tiers: Iterable[str]) -> None:
        """Show these tiers from now on."""
        for tier in tiers:
            for tally in (self.tokens, self.saved):
                tally.setdefault(tier, 0)
            self.ttft.of(tier)


def _copier(table: type[T]) -> Callable[[T], T]:
    values = attrgetter(*(each.name for each in fields(table)))
    tallies = [each.name for each in fields(table) if each.default_factory is Tally]

    def copy(stats: T) -> T:
        copied = table(*values(stats))
        for name in tallies:
            setattr(copied, name, Tally(getattr(stats, name)))
        return copied

    return copy


_copy_tier = _copier(TierStats)
_copy_cache = _copier(CacheStats)


CACHE_METRICS = metrics(CacheStats)
TIER_METRICS = metrics(TierStats, "tier")
ENGINE_METRICS = metrics(EngineStats)
ALIASES = tuple(
    each._replace(name=each.alias, help=f"As {each.name}.") for each in TIER_METRICS if each.alias
)
LOAD_REFUSALS = next(each for each in CACHE_METRICS if each.field == "load_refusals")
METRICS = (*ENGINE_METRICS, *CACHE_METRICS, *TIER_METRICS, *ALIASES, MEMORY, OFF, INFO, IO_CPU)
"""All of them."""


def engine_values(stats: EngineStats) -> Iterator[Value]:
    """List the value of every metric of prompts."""
    for metric in ENGINE_METRICS:
        yield from shown(metric, (), getattr(stats, metric.field))


def values(stats: CacheStats) -> Iterator[Value]:
    """List the value of every metric of the brain, with its labels; those that are 0 too, for alerts need the 0 before."""
    for metric in CACHE_METRICS:
        yield from shown(metric, (), getattr(stats, metric.field))
    for tier in stats.tiers:
        for metric in TIER_METRICS:
            yield from shown(metric, (tier.name,), getattr(tier, metric.field))
    for tier in stats.tiers[1:]:
        for metric in ALIASES:
            yield metric, (tier.name,), getattr(tier, metric.field)
