"""What the brain counts and shows: the one table of its counters and gauges, by field.

A field made by `counter` or `gauge` is a metric; the engine's metrics and docs/metrics.md follow from it. To add a
counter, add a field here and count in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from kvtier.brain.breaker import BreakerState
from kvtier.brain.why import OF_ASKED_TIERS, Why
from kvtier.types import OpStatus

K = TypeVar("K", bound=str)
T = TypeVar("T", "CacheStats", "TierStats")


class Tally(dict[K, int], Generic[K]):
    """A count for each key; 0 for one that was never counted."""

    def __missing__(self, key: K) -> int:
        return 0


class Metric(NamedTuple):
    """How one field is shown."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    field: str = ""
    of: tuple[str, ...] = ()  # values of its own label that are shown from the start, at 0


_REASONS = tuple(why for why in Why if why not in OF_ASKED_TIERS)
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


def counter(name: str, text: str, *, by: str = "", of: tuple[str, ...] = ()) -> Any:
    """Declare a number that only grows, or with `by` one for each value of that label: `of` are those known."""
    metric = Metric(f"kvtier:{name}", "counter", text, (by,) if by else (), of=of)
    if by:
        return field(default_factory=Tally, metadata={"metric": metric})
    return field(default=0, metadata={"metric": metric})


def gauge(name: str, text: str) -> Any:
    """Declare a number of the moment."""
    return field(default=0, metadata={"metric": Metric(f"kvtier:{name}", "gauge", text)})


@dataclass(slots=True)
class TierStats:
    """One tier. Bytes and seconds are of one rank, the slowest."""

    name: str
    hits: int = counter("tier_hits", "Chunks that requests found in the tier.")
    reads: int = counter("tier_reads", "Chunks read up from the tier.")
    read_bytes: int = counter("tier_read_bytes", "Bytes read from the tier, per rank.")
    read_seconds: float = counter("tier_read_seconds", "Seconds in reads, summed.")
    writes: int = counter("tier_writes", "Chunks written to the tier.")
    write_bytes: int = counter("tier_write_bytes", "Bytes written to the tier, per rank.")
    write_seconds: float = counter("tier_write_seconds", "Seconds in writes, summed.")
    evictions: int = counter("tier_evictions", "Chunks that the tier gave up for room.")
    refused: Tally[Why] = counter(
        "tier_refused",
        "Chunks that left DRAM and that the tier did not take.",
        by="reason",
        of=_REASONS,
    )
    trips: int = counter("tier_trips", "Times that the tier was sent to rest.")
    failures: Tally[OpStatus] = counter(
        "tier_failures", "Operations on the tier that failed.", by="cause", of=_CAUSES
    )
    codecs: Tally[str] = counter(
        "tier_codec_writes", "Chunks written to the tier, by how they were encoded.", by="codec"
    )
    capacity: int = gauge(
        "tier_capacity_bytes", "Capacity of the tier, per rank, as far as its medium has it."
    )
    short: int = gauge(
        "tier_short_bytes", "Bytes of the configured capacity that the medium has not, per rank."
    )
    used: int = gauge(
        "tier_used_bytes", "Bytes in use, per rank, with what is being written and removed."
    )
    foreign: int = gauge("tier_foreign_bytes", "Bytes of other namespaces, per rank.")
    chunks: int = gauge("tier_chunks", "Chunks in the tier.")
    in_flight: int = gauge("tier_in_flight", "Operations in flight.")
    resting: int = gauge("tier_resting", "1 while the tier rests.")
    breaker: BreakerState = BreakerState.CLOSED

    def copy(self) -> "TierStats":
        """Keep the numbers of now."""
        return _copy_tier(self)

    def count_read(self, nbytes: int, seconds: float) -> None:
        """Count a chunk that was read."""
        self.reads += 1
        self.read_bytes += nbytes
        self.read_seconds += seconds

    def count_write(self, nbytes: int, seconds: float, codec: str) -> None:
        """Count a chunk that was written, and how it was encoded."""
        self.writes += 1
        self.write_bytes += nbytes
        self.write_seconds += seconds
        if codec:
            self.codecs[codec] += 1


@dataclass(slots=True)
class CacheStats:
    """The whole brain."""

    tiers: tuple[TierStats, ...] = ()
    lookups: int = counter("lookups", "Keys that the scheduler asked for, some several times.")
    stores: int = counter("stores", "Chunks copied in from the device.")
    loads: int = counter("loads", "Chunks copied to the device.")
    load_refusals: Tally[Why] = counter(
        "load_refusals",
        "Requests whose hit ended before their prompt did.",
        by="reason",
        of=_REASONS,
    )
    store_refusals: Tally[Why] = counter(
        "store_refusals",
        "Chunks that were offered and not stored in DRAM.",
        by="reason",
        of=_REASONS,
    )
    hook_failures: int = counter("hook_failures", "Calls of hooks that raised or took too long.")
    hooks_disabled: int = gauge("hooks_disabled", "Hooks that are called no more.")
    vetoes: int = counter("vetoes", "Entries and evictions that hooks refused.")
    evictions: int = counter("evictions", "Chunks that left DRAM.")
    demotions: int = counter("demotions", "Chunks that left DRAM downwards.")
    dropped: int = counter("dropped", "Chunks that left DRAM and are in no tier.")
    prefetches: int = counter("prefetches", "Chunks read ahead of a request.")
    prefetched_bytes: int = counter("prefetched_bytes", "Bytes read ahead.")
    useful_bytes: int = counter("prefetch_useful_bytes", "Of these, used later.")
    wasted_bytes: int = counter("prefetch_wasted_bytes", "Of these, never used.")
    resets: int = counter("resets", "Cache resets.")
    weight_changes: int = counter(
        "weight_changes", "Of these, because weights were changed in place."
    )
    slots: int = gauge("slots", "Slots of the arena.")
    free_slots: int = gauge("free_slots", "Free slots of the arena.")
    quarantined_slots: int = gauge("quarantined_slots", "Slots that wait for an answer.")
    pinned: int = gauge("pinned", "Chunks that are pinned.")
    reading: int = gauge("reading", "Chunks on their way up.")
    requests: int = gauge("requests", "Requests that are known.")

    def copy(self) -> "CacheStats":
        """Keep the numbers of now."""
        return _copy_cache(self)


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


def _metrics(table: type[CacheStats] | type[TierStats], *labels: str) -> tuple[Metric, ...]:
    declared = [(each.name, each.metadata.get("metric")) for each in fields(table)]
    return tuple(
        metric._replace(labels=(*labels, *metric.labels), field=name)
        for name, metric in declared
        if metric
    )


CACHE_METRICS = _metrics(CacheStats)
TIER_METRICS = _metrics(TierStats, "tier")
LOAD_REFUSALS = next(each for each in CACHE_METRICS if each.field == "load_refusals")
METRICS = (*CACHE_METRICS, *TIER_METRICS, MEMORY, OFF)
"""All of them."""


def values(stats: CacheStats) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
    """List the value of every metric of the brain, with its labels; those that are 0 too, for alerts need the 0 before."""
    for metric in CACHE_METRICS:
        yield from _value(metric, (), getattr(stats, metric.field))
    for tier in stats.tiers:
        for metric in TIER_METRICS:
            yield from _value(metric, (tier.name,), getattr(tier, metric.field))


def _value(
    metric: Metric, labels: tuple[str, ...], value: float | Tally[str]
) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
    if isinstance(value, Tally):
        for each in dict.fromkeys((*metric.of, *value)):
            yield metric, (*labels, str(each)), value[each]
    else:
        yield metric, labels, value
