"""A server's `/metrics`, read once."""

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from kvtier.errors import KvtierError

_OURS = "kvtier:"
_PORT = 8000  # vLLM's own default
_MOST_NBYTES = 64 << 20
_LEFT_OUT = frozenset({"engine", "model_name", "instance"})  # engines of one server are added

Labels = tuple[tuple[str, str], ...]
"""Names and values, sorted by name."""


class Scrape(NamedTuple):
    """The values at one instant, of all engines behind one address together."""

    at: float  # seconds of the monotonic clock
    values: Mapping[str, Mapping[Labels, float]]
    engines: int = 1

    def total(self, metric: str, **labels: str) -> float:
        """Add what has these labels; 0 where nothing has."""
        wanted = set(labels.items())
        return sum(value for has, value in self.values.get(metric, {}).items() if wanted <= {*has})

    def by(self, metric: str, label: str, **labels: str) -> dict[str, float]:
        """Add, for each value of one label, what has these labels."""
        wanted, found = set(labels.items()), defaultdict[str, float](float)
        for has, value in self.values.get(metric, {}).items():
            if wanted <= {*has}:
                found[dict(has).get(label, "")] += value
        return dict(found)

    def since(self, before: "Scrape | None") -> "Scrape":
        """Give what came since `before`; a counter that is smaller than then belongs to an engine that was started again."""
        if before is None:
            return self
        old = before.values
        values = {
            metric: {
                labels: value - earlier
                if value >= (earlier := old.get(metric, {}).get(labels, 0.0))
                else value
                for labels, value in series.items()
            }
            for metric, series in self.values.items()
        }
        return Scrape(self.at - before.at, values, self.engines)


def metrics_url(address: str) -> str:
    """Complete `host`, `host:8000` or `http://host:8000` to the address of the metrics."""
    if "://" not in address:
        host, slash, path = address.partition("/")
        address = f"http://{host if ':' in host else f'{host}:{_PORT}'}{slash}{path}"
    scheme, _, rest = address.partition("://")
    return address if "/" in rest.rstrip("/") else f"{scheme}://{rest.rstrip('/')}/metrics"


def fetch(address: str, timeout_s: float = 5.0) -> Scrape:
    """Read the metrics of the server at `address`.

    Raises:
        KvtierError: it does not answer, or what it says is not a vLLM server's metrics.
    """
    try:
        import httpx
    except ModuleNotFoundError as exc:
        raise KvtierError(
            "httpx and prometheus-client are missing: pip install 'kvtier[demo]'"
        ) from exc
    url = metrics_url(address)
    try:
        answer = httpx.get(url, timeout=timeout_s, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPStatusError as exc:
        status = exc.response.status_code
        raise KvtierError(
            f"{url}: answers with status {status}: no metrics of a vLLM server"
        ) from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise KvtierError(f"{url}: {exc or type(exc).__name__}") from exc
    if len(answer.content) > _MOST_NBYTES:
        raise KvtierError(f"{url}: {len(answer.content):,} bytes are no metrics")
    return read(answer.text, url)


def read(text: str, url: str = "metrics") -> Scrape:
    """Read Prometheus' text format; of all that vLLM shows only ours is taken.

    Raises:
        KvtierError: it is not that format, or kvtier is not in it.
    """
    from prometheus_client.parser import text_string_to_metric_families

    lines = [line for line in text.splitlines() if line.startswith(_OURS)]
    if not lines:
        also = (
            "this is a vLLM server without it"
            if "\nvllm:" in text
            else "no vLLM server answers there"
        )
        raise KvtierError(f"{url}: no metrics of kvtier; {also}")
    values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
    engines = set()
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                engines.add(sample.labels.get("engine", ""))
                labels = _shared(
                    tuple(sorted((k, v) for k, v in sample.labels.items() if k not in _LEFT_OUT))
                )
                values[sys.intern(sample.name.removeprefix(_OURS))][labels] += sample.value
    except ValueError as exc:
        raise KvtierError(f"{url}: not Prometheus' text format: {exc}") from exc
    return Scrape(time.monotonic(), values, len(engines))


@lru_cache(maxsize=1 << 14)
def _shared(labels: Labels) -> Labels:
    """Give the same object for the same labels: a scrape that is kept takes 37 KiB and not 830, of 600 series."""
    return labels
