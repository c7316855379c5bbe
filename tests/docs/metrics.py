"""docs/metrics.md, as the one table of metrics and the list of reasons make it.

python -m tests.docs.metrics     write the page anew
"""

from kvtier.brain import Why
from kvtier.brain.stats import CACHE_METRICS, MEMORY, METRICS, OFF, TIER_METRICS, Metric
from tests.docs.pages import DOCS

PAGE = DOCS / "metrics.md"

_HEAD = """# Metrics

`GET /metrics` of the server shows these beside vLLM's own, with the labels that vLLM gives to all of its metrics. A
counter ends in `_total` there. `python -m tests.docs.metrics` writes this page; the table itself is in
`kvtier/brain/stats.py`. While the engine is busy, the numbers are a second old at most; at rest they are of now.

A *chunk* is the unit of offload, a *tier* is named as in the YAML; the first is `dram`. Bytes, seconds and capacities are
those of one rank; where ranks differ, the slowest counts.

Every series is there from the first scrape on, at 0, for each tier, cause and reason: so the first failure is an increase,
and an alert can fire on it. Two exceptions are made by the first chunk that has them: `codec` and `node`. A tier has about 50 series, the rest 70.

`monitoring/alerts.yml` has alerts for Prometheus, each with what to do. vLLM's own log says every ten seconds what moved:

```
KV Transfer metrics: kvtier=loaded 3 chunks (3MiB in 0.02 s); nvme: 3 hits, 2 failed, 3MiB in use
```
"""

_WHY = """## Reasons

The label `reason` says why something was not served, stored or written. A request whose hit ends before its prompt does
is counted once in `kvtier:load_refusals`, under the first reason that was met, and again only after it was preempted. With
debug logs (`VLLM_LOGGING_LEVEL=DEBUG`) each such request is named:

```
kvtier: request chatcmpl-7: 0 of 4096 tokens from kvtier: no slot (all pinned)
```

"""


def render() -> str:
    """Write the page."""
    parts = [
        _HEAD,
        "## Of the whole cache\n",
        _table((*CACHE_METRICS, OFF)),
        "## Of each tier\n",
        _table((*TIER_METRICS, MEMORY)),
    ]
    assert set(METRICS) == {*CACHE_METRICS, *TIER_METRICS, OFF, MEMORY}
    rows = "\n".join(f"| `{why}` | {why.text} |" for why in Why)
    return "\n".join(parts) + f"\n{_WHY}| reason | meaning |\n|---|---|\n{rows}\n"


def _table(metrics: tuple[Metric, ...]) -> str:
    rows = []
    for metric in metrics:
        labels = f"{{{', '.join(metric.labels)}}}" if metric.labels else ""
        rows.append(f"| `{metric.name}{labels}` | {metric.kind} | {metric.help} |")
    return "| metric | kind | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
