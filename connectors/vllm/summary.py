"""The numbers of some seconds in a sentence, for the line that vLLM logs of them."""

from collections.abc import Iterator
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)

from kvtier.brain.stats import CACHE_METRICS, OFF, TIER_METRICS
from kvtier.units import format_nbytes

_COUNTED = {
    "hits": "hits",
    "reads": "read",
    "writes": "written",
    "evictions": "evicted",
    "failures": "failed",
    "trips": "times sent to rest",
}
"""What is said of a tier, by the field of its stats, and in which words."""
_NAMES = {metric.field: metric.name for metric in TIER_METRICS}
_COPIED = {metric.field: metric.name for metric in CACHE_METRICS}


class Summary(OffloadingConnectorStats):
    """Stats as vLLM adds them up. What did not happen is not said, and neither is the cause of what failed."""

    def reduce(self) -> dict[str, Any]:
        """Say what moved: `loaded 24 chunks (192MiB in 0.021 s); dram: 24 hits, 37.1MiB in use`."""
        try:
            said = [*self._copies(), *(f"{tier}: {', '.join(of)}" for tier, of in self._tiers())]
        except Exception:  # the log goes on, in vLLM's words
            return super().reduce()
        if self._sum(OFF.name):
            said.append("off")
        return {"kvtier": "; ".join(said) or "nothing moved"}

    def _copies(self) -> Iterator[str]:
        for did, way in (("loaded", "load"), ("stored", "store")):
            if count := self._sum(_COPIED[f"{way}s"]):
                nbytes = format_nbytes(self._sum(f"vllm:kv_offload_{way}_bytes"))
                seconds = self._sum(f"vllm:kv_offload_{way}_time")
                yield f"{did} {count:.0f} chunks ({nbytes} in {seconds:.3g} s)"

    def _tiers(self) -> Iterator[tuple[str, list[str]]]:
        used = self._of("used")
        names = dict.fromkeys(labels[0] for field in _COUNTED for labels in self._of(field))
        for tier in dict.fromkeys([*names, *(labels[0] for labels in used)]):
            said = []
            for field, word in _COUNTED.items():
                of = self._of(field).items()
                if count := sum(value for labels, value in of if labels[0] == tier):
                    said.append(f"{count:.0f} {word}")
            if (tier,) in used:
                said.append(f"{format_nbytes(used[tier,])} in use")
            if said:
                yield tier, said

    def _of(self, field: str) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = self._values.get(_NAMES[field], {})
        return found

    def _sum(self, name: str) -> float:
        return float(sum(self._values.get(name, {}).values()))
