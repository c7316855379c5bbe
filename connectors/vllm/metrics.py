"""The brain's numbers as Prometheus metrics: declared for the API server, filled in EngineCore.

vLLM asserts that whatever is emitted was declared: both come from the table in `kvtier.brain.stats`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingHistogramMetadata,
    OffloadingMetricMetadata,
)

from kvtier import __version__
from kvtier.brain import CacheStats, Why
from kvtier.brain.metric import Metric, Value
from kvtier.brain.stats import (
    INFO,
    IO_CPU,
    LOAD_REFUSALS,
    MEMORY,
    METRICS,
    OFF,
    EngineStats,
    engine_values,
    values,
)
from kvtier.types import Placed

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )

_PERIOD_S = 1.0
_KINDS = {"counter": OffloadingCounterMetadata, "gauge": OffloadingGaugeMetadata}


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Declare every metric that `Meter` emits."""
    return {each.name: _declared(each) for each in METRICS}


def _declared(metric: Metric) -> OffloadingMetricMetadata:
    if metric.kind == "histogram":
        return OffloadingHistogramMetadata(metric.help, metric.labels, metric.buckets)
    return _KINDS[metric.kind](metric.help, metric.labels)


class Meter:
    """Turns cumulative counters into the increments that vLLM wants.

    vLLM asks in every step, and nobody reads that often: while it is busy, it gets numbers once a second. What was not
    told yet is in the next ones; an engine that comes to rest has told all of it.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, engine: EngineStats | None = None
    ) -> None:
        self._clock = clock
        self._engine = engine or EngineStats()
        self._next = 0.0
        self._seen: dict[tuple[str, tuple[str, ...]], float] = {}
        self._placed: dict[int, list[Placed]] = {}  # by rank
        self._about: tuple[str, ...] | None = None
        self._io: dict[int, float] = {}  # processor seconds of the present I/O process, by rank
        self._io_sum: dict[int, float] = {}  # and of all that were
        self._refused = 0  # requests since the last call, with kvtier off

    def place(self, placed: Sequence[Placed]) -> None:
        """Take where the ranks' memory is, of those that are named."""
        for rank in {each.rank for each in placed}:
            self._placed[rank] = [each for each in placed if each.rank == rank]

    def introduce(self, chunk_tokens: int, ranks: int, namespace: str) -> None:
        """Take what this engine's kvtier is."""
        self._about = __version__, str(chunk_tokens), str(ranks), namespace

    def spent(self, seconds: Mapping[int, float]) -> None:
        """Take the processor time of the ranks' I/O processes, each since its start: less is of a new one."""
        for rank, now in seconds.items():
            before = self._io.get(rank, 0.0)
            grown = now - before if now >= before else now
            self._io_sum[rank] = self._io_sum.get(rank, 0.0) + grown
            self._io[rank] = now

    def due(self, *, resting: bool) -> bool:
        """Whether numbers are to be told now; in a step after which nobody may ask again they are."""
        now = self._clock()
        if not resting and now < self._next:
            return False
        self._next = now + _PERIOD_S
        return True

    def collect(self, stats: CacheStats) -> "OffloadingConnectorStats | None":
        """Report what changed since the last call, and all there is in the first one; None if nothing did."""
        out = _new_stats()
        self._tell(out, (*self._own(), *engine_values(self._engine), *values(stats)))
        for labels, nbytes in self._nodes(stats).items():
            if self._seen.get((MEMORY.name, labels)) != nbytes:
                self._seen[MEMORY.name, labels] = nbytes
                out.set_gauge(MEMORY.name, nbytes, labels)
        return None if out.is_empty() else out

    def _own(self) -> Iterator[Value]:
        yield OFF, (), 0
        if self._about is not None:
            yield INFO, self._about, 1
        for rank, seconds in self._io_sum.items():
            yield IO_CPU, (str(rank),), seconds

    def _tell(self, out: "OffloadingConnectorStats", found: Iterable[Value]) -> None:
        for metric, labels, value in found:
            seen = self._seen.get((metric.name, labels))
            if isinstance(value, list):
                if value or seen is None:
                    _observe(out, metric.name, value, labels)
                    self._seen[metric.name, labels] = 0
                continue
            grown = value - (seen or 0)
            if not grown and seen is not None:
                continue
            if metric.kind == "gauge":
                out.set_gauge(metric.name, value, labels)
            elif grown >= 0:  # a fall is an error in the API server
                out.increase_counter(metric.name, grown, labels)
            else:
                continue
            self._seen[metric.name, labels] = value

    def _nodes(self, stats: CacheStats) -> dict[tuple[str, ...], float]:
        """Bytes by tier and node, of all ranks; 0 where there were some before."""
        sums = {labels: 0.0 for name, labels in self._seen if name == MEMORY.name}
        for placed in self._placed.values():
            for each in placed:
                labels = (stats.tiers[each.tier].name, str(each.node))
                sums[labels] = sums.get(labels, 0.0) + each.nbytes
        return sums

    def refuse(self) -> None:
        """Note a request that comes while kvtier is off."""
        self._refused += 1

    def off(self) -> "OffloadingConnectorStats | None":
        """Report that kvtier turned itself off, whom it does not serve, and their prompts; None if that is no news."""
        out = _new_stats()
        self._tell(out, engine_values(self._engine))
        if not self._seen.get((OFF.name, ())):
            self._seen[OFF.name, ()] = 1
            out.set_gauge(OFF.name, 1)
        if self._refused:
            out.increase_counter(LOAD_REFUSALS.name, self._refused, (str(Why.OFF),))
            self._refused = 0
        return None if out.is_empty() else out


def _observe(
    out: "OffloadingConnectorStats", name: str, samples: list[float], labels: tuple[str, ...]
) -> None:
    """Move what was measured into vLLM's stats; a series without any is shown too, which no call of vLLM's does."""
    out.data["types"][name] = "histogram"
    out.data["data"].setdefault(name, {})[labels] = list(samples)
    samples.clear()


def _new_stats() -> "OffloadingConnectorStats":
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )

    return OffloadingConnectorStats()
