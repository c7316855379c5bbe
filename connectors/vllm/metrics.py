"""The brain's numbers as Prometheus metrics: declared for the API server, filled in EngineCore.

vLLM asserts that whatever is emitted was declared: both come from the table in `kvtier.brain.stats`.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)

from kvtier.brain import CacheStats, Why
from kvtier.brain.stats import LOAD_REFUSALS, MEMORY, METRICS, OFF, values
from kvtier.types import Placed

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )

_PERIOD_S = 1.0
_KINDS = {"counter": OffloadingCounterMetadata, "gauge": OffloadingGaugeMetadata}


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Declare every metric that `Meter` emits."""
    return {each.name: _KINDS[each.kind](each.help, each.labels) for each in METRICS}


class Meter:
    """Turns cumulative counters into the increments that vLLM wants.

    vLLM asks in every step, and nobody reads that often: while it is busy, it gets numbers once a second. What was not
    told yet is in the next ones; an engine that comes to rest has told all of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._seen: dict[tuple[str, tuple[str, ...]], float] = {}
        self._placed: dict[int, list[Placed]] = {}  # by rank
        self._refused = 0  # requests since the last call, with kvtier off

    def place(self, placed: Sequence[Placed]) -> None:
        """Take where the ranks' memory is, of those that are named."""
        for rank in {each.rank for each in placed}:
            self._placed[rank] = [each for each in placed if each.rank == rank]

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
        for metric, labels, value in ((OFF, (), 0), *values(stats)):
            seen = self._seen.get((metric.name, labels))
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
        for labels, nbytes in self._nodes(stats).items():
            if self._seen.get((MEMORY.name, labels)) != nbytes:
                self._seen[MEMORY.name, labels] = nbytes
                out.set_gauge(MEMORY.name, nbytes, labels)
        return None if out.is_empty() else out

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
        """Report that kvtier turned itself off, and whom it does not serve; None if that is no news."""
        out = _new_stats()
        if not self._seen.get((OFF.name, ())):
            self._seen[OFF.name, ()] = 1
            out.set_gauge(OFF.name, 1)
        if self._refused:
            out.increase_counter(LOAD_REFUSALS.name, self._refused, (str(Why.OFF),))
            self._refused = 0
        return None if out.is_empty() else out


def _new_stats() -> "OffloadingConnectorStats":
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )

    return OffloadingConnectorStats()
