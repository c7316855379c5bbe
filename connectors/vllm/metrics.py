"""The brain's numbers as Prometheus metrics: declared for the API server, filled in EngineCore.

vLLM asserts that whatever is emitted was declared, so both come from the tables here.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)

from kvtier.types import Placed

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )

    from kvtier.brain import CacheStats, TierStats


S = TypeVar("S")


class _Metric(NamedTuple, Generic[S]):
    name: str
    documentation: str
    value: Callable[[S], float]


TIER_COUNTERS: "tuple[_Metric[TierStats], ...]" = (
    _Metric("kvtier:tier_hits", "Chunks that requests found in the tier.", lambda t: t.hits),
    _Metric("kvtier:tier_reads", "Chunks read up from the tier.", lambda t: t.reads),
    _Metric(
        "kvtier:tier_read_bytes", "Bytes read from the tier, per rank.", lambda t: t.read_bytes
    ),
    _Metric("kvtier:tier_read_seconds", "Time in reads, summed.", lambda t: t.read_seconds),
    _Metric("kvtier:tier_writes", "Chunks written to the tier.", lambda t: t.writes),
    _Metric("kvtier:tier_write_bytes", "Bytes written, per rank.", lambda t: t.write_bytes),
    _Metric("kvtier:tier_write_seconds", "Time in writes, summed.", lambda t: t.write_seconds),
    _Metric(
        "kvtier:tier_evictions", "Chunks that the tier gave up for room.", lambda t: t.evictions
    ),
    _Metric("kvtier:tier_refused", "Chunks that the tier could not take.", lambda t: t.refused),
    _Metric("kvtier:tier_trips", "Times that the tier was sent to rest.", lambda t: t.trips),
)
TIER_GAUGES: "tuple[_Metric[TierStats], ...]" = (
    _Metric("kvtier:tier_capacity_bytes", "Capacity, per rank.", lambda t: t.capacity),
    _Metric("kvtier:tier_used_bytes", "Bytes in use, per rank.", lambda t: t.used),
    _Metric(
        "kvtier:tier_foreign_bytes", "Bytes of other namespaces, per rank.", lambda t: t.foreign
    ),
    _Metric("kvtier:tier_chunks", "Chunks in the tier.", lambda t: t.chunks),
    _Metric("kvtier:tier_in_flight", "Operations in flight.", lambda t: t.in_flight),
    _Metric("kvtier:tier_resting", "1 while the tier rests.", lambda t: t.breaker != "closed"),
)
COUNTERS: "tuple[_Metric[CacheStats], ...]" = (
    _Metric("kvtier:lookups", "Keys that the scheduler asked for.", lambda s: s.lookups),
    _Metric("kvtier:stores", "Chunks copied in from the device.", lambda s: s.stores),
    _Metric("kvtier:loads", "Chunks copied to the device.", lambda s: s.loads),
    _Metric("kvtier:no_room", "Chunks refused for want of a slot.", lambda s: s.no_room),
    _Metric(
        "kvtier:orphans", "Chunks refused because their parent is nowhere.", lambda s: s.orphans
    ),
    _Metric(
        "kvtier:not_admitted", "Chunks that DRAM's policy did not admit.", lambda s: s.not_admitted
    ),
    _Metric("kvtier:hook_failures", "Calls of hooks that failed.", lambda s: s.hook_failures),
    _Metric("kvtier:vetoes", "Entries and evictions that hooks refused.", lambda s: s.vetoes),
    _Metric("kvtier:demotions", "Chunks that left DRAM downwards.", lambda s: s.demotions),
    _Metric("kvtier:dropped", "Chunks that left DRAM and are in no tier.", lambda s: s.dropped),
    _Metric("kvtier:vanished", "Chunks of a hit that were gone at its load.", lambda s: s.vanished),
    _Metric(
        "kvtier:refused_reads",
        "Hits computed because reading costs more.",
        lambda s: s.refused_reads,
    ),
    _Metric("kvtier:late_reads", "Hits cut short by a deadline.", lambda s: s.late_reads),
    _Metric("kvtier:prefetches", "Chunks read ahead of a request.", lambda s: s.prefetches),
    _Metric("kvtier:prefetched_bytes", "Bytes read ahead.", lambda s: s.prefetched_bytes),
    _Metric("kvtier:prefetch_useful_bytes", "Of these, used later.", lambda s: s.useful_bytes),
    _Metric("kvtier:prefetch_wasted_bytes", "Of these, never used.", lambda s: s.wasted_bytes),
    _Metric("kvtier:resets", "Cache resets.", lambda s: s.resets),
)
GAUGES: "tuple[_Metric[CacheStats], ...]" = (
    _Metric("kvtier:free_slots", "Free slots of the arena.", lambda s: s.free_slots),
    _Metric(
        "kvtier:quarantined_slots", "Slots that wait for an answer.", lambda s: s.quarantined_slots
    ),
    _Metric("kvtier:pinned", "Chunks that are pinned.", lambda s: s.pinned),
    _Metric("kvtier:reading", "Chunks on their way up.", lambda s: s.reading),
)
FAILURES = "kvtier:tier_failures"
CODECS = "kvtier:tier_codec_writes"
OFF = "kvtier:off"
MEMORY = "kvtier:memory_bytes"


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Declare every metric that `Meter` emits."""
    declared: dict[str, OffloadingMetricMetadata] = {}
    for of_tier in TIER_COUNTERS:
        declared[of_tier.name] = OffloadingCounterMetadata(of_tier.documentation, ("tier",))
    for of_tier in TIER_GAUGES:
        declared[of_tier.name] = OffloadingGaugeMetadata(of_tier.documentation, ("tier",))
    for metric in COUNTERS:
        declared[metric.name] = OffloadingCounterMetadata(metric.documentation)
    for metric in GAUGES:
        declared[metric.name] = OffloadingGaugeMetadata(metric.documentation)
    declared[FAILURES] = OffloadingCounterMetadata("Operations that failed.", ("tier", "cause"))
    declared[CODECS] = OffloadingCounterMetadata(
        "Chunks written, by how they were encoded.", ("tier", "codec")
    )
    declared[MEMORY] = OffloadingGaugeMetadata(
        "Bytes of memory by the NUMA node that they are really on.", ("tier", "node")
    )
    declared[OFF] = OffloadingGaugeMetadata("1 after kvtier turned itself off.")
    return declared


class Meter:
    """Turns cumulative counters into the increments that vLLM wants."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, tuple[str, ...]], float] = {}
        self._placed: dict[int, list[Placed]] = {}  # by rank

    def place(self, placed: Sequence[Placed]) -> None:
        """Take where the ranks' memory is, of those that are named."""
        for rank in {each.rank for each in placed}:
            self._placed[rank] = [each for each in placed if each.rank == rank]

    def collect(self, stats: "CacheStats") -> "OffloadingConnectorStats | None":
        """Report what changed since the last call; None if nothing did."""
        out = _new_stats()
        for name, labels, value in _counters(stats):
            grown = value - self._seen.get((name, labels), 0)
            if grown > 0:  # a counter that fell would be an error in the API server
                self._seen[name, labels] = value
                out.increase_counter(name, grown, labels)
        for name, labels, value in _gauges(stats):
            if self._seen.get((name, labels)) != value:
                self._seen[name, labels] = value
                out.set_gauge(name, value, labels)
        for labels, nbytes in self._nodes(stats).items():
            if self._seen.get((MEMORY, labels)) != nbytes:
                self._seen[MEMORY, labels] = nbytes
                out.set_gauge(MEMORY, nbytes, labels)
        return None if out.is_empty() else out

    def _nodes(self, stats: "CacheStats") -> dict[tuple[str, ...], float]:
        """Bytes by tier and node, of all ranks; 0 where there were some before."""
        sums = {labels: 0.0 for name, labels in self._seen if name == MEMORY}
        for placed in self._placed.values():
            for each in placed:
                labels = (stats.tiers[each.tier].name, str(each.node))
                sums[labels] = sums.get(labels, 0.0) + each.nbytes
        return sums

    def off(self) -> "OffloadingConnectorStats | None":
        """Report, once, that kvtier turned itself off."""
        if self._seen.get((OFF, ())):
            return None
        self._seen[OFF, ()] = 1
        out = _new_stats()
        out.set_gauge(OFF, 1)
        return out


def _counters(stats: "CacheStats") -> Iterator[tuple[str, tuple[str, ...], float]]:
    for metric in COUNTERS:
        yield metric.name, (), metric.value(stats)
    for tier in stats.tiers:
        for of_tier in TIER_COUNTERS:
            yield of_tier.name, (tier.name,), of_tier.value(tier)
        for cause, count in tier.failures:
            yield FAILURES, (tier.name, str(cause)), count
        for codec, count in tier.codecs:
            yield CODECS, (tier.name, codec), count


def _gauges(stats: "CacheStats") -> Iterator[tuple[str, tuple[str, ...], float]]:
    for metric in GAUGES:
        yield metric.name, (), metric.value(stats)
    for tier in stats.tiers:
        for of_tier in TIER_GAUGES:
            yield of_tier.name, (tier.name,), float(of_tier.value(tier))


def _new_stats() -> "OffloadingConnectorStats":
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )

    return OffloadingConnectorStats()
