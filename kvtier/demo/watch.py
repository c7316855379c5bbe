"""What vLLM's `/metrics` says about where tokens came from and how full the tiers are."""

import threading
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from kvtier.demo.client import metrics
from kvtier.demo.results import Occupancy, Sources
from kvtier.demo.server import ServerError

Samples = dict[tuple[str, str], float]
"""Value by metric and by the one label that matters here: `source` or `tier`."""

_PROMPT = "vllm:prompt_tokens_by_source_total"
_CACHED = "vllm:prompt_tokens_cached_by_source_total"
_WANTED = ("kvtier:", "vllm:prompt_tokens_")  # the parser takes 25 ms of CPU for all of them


def parse(text: str) -> Samples:
    """Read our metrics, and vLLM's of the prompts' tokens, out of Prometheus' text format."""
    lines = "".join(line for line in text.splitlines(keepends=True) if line.startswith(_WANTED))
    return {
        (sample.name, sample.labels.get("source") or sample.labels.get("tier", "")): sample.value
        for family in text_string_to_metric_families(lines)
        for sample in family.samples
    }


def sources(samples: Samples) -> Sources:
    """Where the prompts' tokens came from since the server started; vLLM's own counters."""
    external = int(samples.get((_PROMPT, "external_kv_transfer"), 0))
    nvme = min(external, int(samples.get((_CACHED, "disk"), 0)))
    return Sources(
        computed=int(samples.get((_PROMPT, "local_compute"), 0)),
        hbm=int(samples.get((_PROMPT, "local_cache_hit"), 0)),
        dram=external - nvme,
        nvme=nvme,
    )


def by_tier(samples: Samples, metric: str) -> dict[str, int]:
    """One of kvtier's gauges, by tier."""
    return {label: int(value) for (name, label), value in samples.items() if name == metric}


class Watch:
    """Samples the tiers in a thread of its own while a pass runs."""

    def __init__(self, port: int, every_s: float = 0.25) -> None:
        self.occupancy: list[Occupancy] = []
        self.capacity: dict[str, int] = {}
        self._port = port
        self._every_s = every_s
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="kvtier-demo-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                samples = parse(metrics(self._port))
            except (httpx.HTTPError, ServerError):  # the server is busy or gone: a gap in the plot
                continue
            used = by_tier(samples, "kvtier:tier_used_bytes")
            self.capacity |= by_tier(samples, "kvtier:tier_capacity_bytes")
            self.occupancy.append(Occupancy(time.monotonic() - self._started, used))
