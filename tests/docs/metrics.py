"""docs/metrics.md, as the one table of metrics and the list of reasons make it.

python -m tests.docs.metrics     write the page anew
"""

from kvtier.brain import Why
from kvtier.brain.metric import Metric
from kvtier.brain.stats import (
    ALIASES,
    CACHE_METRICS,
    ENGINE_METRICS,
    INFO,
    IO_CPU,
    MEMORY,
    METRICS,
    OFF,
    TIER_METRICS,
)
from tests.docs.pages import DOCS

PAGE = DOCS / "metrics.md"

_HEAD = """# Metrics

`GET /metrics` of the server shows these beside vLLM's own, with the labels that vLLM gives to all of its metrics. A
counter ends in `_total` there, and a histogram has `_bucket`, `_sum` and `_count`. `python -m tests.docs.metrics` writes this page; the table itself is in
`kvtier/brain/stats.py`. While the engine is busy, the numbers are a second old at most; at rest they are of now.

A *chunk* is the unit of offload, a *tier* is named as in the YAML. Bytes and capacities are those of all ranks together,
seconds those of the slowest rank.

Every series is there from the first scrape on, at 0, for each tier, cause and reason: so the first failure is an increase,
and an alert can fire on it. Exceptions are made by what has them first: `codec`, `node`, `rank`, and a reason where none is expected. A tier has about
220 samples, the rest 260; no label holds what a request says. A histogram takes 4,096 values of a label and second at most.

`monitoring/alerts.yml` has alerts for Prometheus, each with what to do. vLLM's own log says every ten seconds what moved:

```
KV Transfer metrics: kvtier=loaded 3 chunks (3MiB in 0.02 s); nvme: 3 hits, 2 failed, 3MiB in use
```
"""

_PROMPTS = """Each prompt is counted once, in the step of its first output, as vLLM counts it: the tokens of all `tier` together are
`vllm:prompt_tokens_total`, those of all `reason` are those that were computed. vLLM itself counts in three ways otherwise:

- A load that fails after its hit was given is computed; here it is `computed`, for the reason `failed`, where vLLM calls it
  external.
- A request that its client gives up between the first output and the next look of the API server is counted here alone.
- With another connector beside kvtier vLLM does not tell whose its external tokens are; here the other's are `other`.

Nobody counts what is aborted before its first output, what is computed anew after a preemption, and what is streamed in later.
A chunk that was read ahead of its request is of the first tier by then. How many tokens more capacity would have had is
`kvtier:misses_total{reason="evicted"}`: kvtier remembers about a million of the last chunks that were given up for room,
in 4 MiB. A hit rate, and what kvtier saves of the engine's time:

```
sum by (tier) (rate(kvtier:prompt_tokens_total[5m])) / ignoring (tier) group_left sum (rate(kvtier:prompt_tokens_total[5m]))
sum (rate(kvtier:saved_prefill_seconds_total[5m])) - sum (rate(kvtier:tier_spent_seconds_total[5m]))
```

`saved_prefill_seconds` goes by the pace at which the engine was last seen to compute prompts, without more for long
contexts, and is 0 until one was seen.
"""

_THEIRS = """## By vLLM's own names

Dashboards and routers that know vLLM's own tiers find these, of the tiers below the first:
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
        "## Of prompts and steps\n",
        _table(ENGINE_METRICS),
        _PROMPTS,
        "## Of the whole cache\n",
        _table((INFO, *CACHE_METRICS, IO_CPU, OFF)),
        "## Of each tier\n",
        _table((*TIER_METRICS, MEMORY)),
        _THEIRS,
        _table(ALIASES),
    ]
    assert set(METRICS) == {
        *ENGINE_METRICS,
        *CACHE_METRICS,
        *TIER_METRICS,
        *ALIASES,
        INFO,
        IO_CPU,
        MEMORY,
        OFF,
    }
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
