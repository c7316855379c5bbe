"""The Grafana dashboard, panel by panel: `python -m tests.monitoring.dashboard` writes `monitoring/grafana.json`."""

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parents[2] / "monitoring" / "grafana.json"
_AT = 'engine=~"$engine",instance=~"$instance"'
_WIDE, _HIGH = 24, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """One plot: its queries by what each is called, `@` for the labels that are chosen above the dashboard."""

    title: str
    says: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    stacked: bool = False
    high: int = _HIGH

    @property
    def expressions(self) -> list[str]:
        """The queries with their labels."""
        return [query.replace("@", _AT) for query in self.queries.values()]


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate(kvtier:{metric}{{@{more}}}[$__rate_interval]))"


def _high(metric: str, by: str, share: float = 0.95) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', f'le, {by}')})"


_TOKENS = "sum(rate(kvtier:prompt_tokens_total{@%s}[$__rate_interval]))"
COMPUTED = ',tier="computed"'
_NET = (
    "sum(increase(kvtier:saved_prefill_seconds_total{@}[$__range]))"
    " - sum(increase(kvtier:tier_spent_seconds_total{@}[$__range]))"
)

PANELS = (
    Panel(
        "Not computed",
        "Share of prompt tokens whose KV was there: in the device's cache, or in a tier.",
        {"not computed": f"1 - {_TOKENS % COMPUTED} / {_TOKENS % ''}"},
        "percentunit",
        "stat",
        6,
        high=4,
    ),
    Panel(
        "Worth, in the time shown",
        "Seconds of prefill that were saved, less the seconds that requests waited for it.",
        {"worth": _NET},
        "s",
        "stat",
        6,
        high=4,
    ),
    Panel(
        "Tiers that rest",
        "Tiers that are neither read nor written after failures.",
        {"resting": "sum(kvtier:tier_resting{@})"},
        "none",
        "stat",
        6,
        high=4,
    ),
    Panel(
        "Engines with kvtier off",
        "Engines that serve as vLLM alone.",
        {"off": "sum(kvtier:off{@})"},
        "none",
        "stat",
        6,
        high=4,
    ),
    Panel(
        "Prompt tokens by source",
        "Where the KV of prompt tokens came from. hbm is the device's own cache, computed none. They add up to vLLM's own prompt tokens.",
        {"{{tier}}": _rate("prompt_tokens_total", "tier")},
        stacked=True,
    ),
    Panel(
        "Why tokens were computed",
        "docs/operations.md says for each reason what to do.",
        {"{{reason}}": _rate("misses_total", "reason")},
        stacked=True,
    ),
    Panel(
        "Time to first token, 95 %, by source of the prefix",
        "The source is the lowest tier that had some of the prompt.",
        {"{{source}}": _high("ttft_seconds", "source")},
        "s",
    ),
    Panel(
        "Saved and spent",
        "Seconds of prefill saved per second, and seconds that requests waited for what tiers had.",
        {
            "saved: {{tier}}": _rate("saved_prefill_seconds_total", "tier"),
            "spent: {{tier}}": _rate("tier_spent_seconds_total", "tier"),
        },
        "none",
    ),
    Panel(
        "Read, and what the medium reaches",
        "Bytes read per second, of all ranks; the medium's rate is the one that kvtier has measured.",
        {
            "{{tier}}": _rate("tier_read_bytes_total", "tier"),
            "{{tier}} reaches": "sum by (tier) (kvtier:tier_medium_bytes_per_second{@})",
        },
        "Bps",
    ),
    Panel(
        "Written",
        "Bytes written per second, and those that were evicted without ever having been read.",
        {
            "{{tier}}": _rate("tier_write_bytes_total", "tier"),
            "{{tier}} evicted unread": _rate("tier_unread_evicted_bytes_total", "tier"),
        },
        "Bps",
    ),
    Panel(
        "Occupancy",
        "Bytes in use by capacity.",
        {
            "{{tier}}": "sum by (tier) (kvtier:tier_used_bytes{@}) / sum by (tier) (kvtier:tier_capacity_bytes{@})"
        },
        "percentunit",
    ),
    Panel(
        "Age of chunks that leave, median",
        "How long a chunk was in the tier when it left. Shorter than the gaps between the turns of your chats: the tier is too small.",
        {"{{tier}}": _high("tier_left_age_seconds", "tier", 0.5)},
        "s",
    ),
    Panel(
        "Wait for reads, 95 %",
        "How long requests waited for their hits.",
        {"{{tier}}": _high("tier_read_wait_seconds", "tier")},
        "s",
    ),
    Panel(
        "A read or write, 95 %, by part",
        "In the queue, in the codec, in the medium: which of them is slow.",
        {"{{tier}} {{part}}": _high("tier_operation_seconds", "tier, part")},
        "s",
    ),
    Panel(
        "Failures by cause",
        "Operations that failed. Each is a miss, and computed.",
        {"{{tier}} {{cause}}": _rate("tier_failures_total", "tier, cause")},
        "ops",
    ),
    Panel(
        "kvtier in the engine's step, 99 %",
        "Seconds of the scheduler's thread per step.",
        {"{{part}}": _high("step_seconds", "part", 0.99)},
        "s",
    ),
    Panel(
        "Processor time of the I/O processes",
        "Cores in use by each rank's I/O process.",
        {"rank {{rank}}": _rate("io_cpu_seconds_total", "rank")},
        "none",
    ),
    Panel(
        "Evicted too early, median gap",
        "Seconds from when no tier had a chunk any more until it was asked for again: what more capacity would have to bridge.",
        {
            "gap": "histogram_quantile(0.5, sum by (le) (rate(kvtier:evict_reuse_gap_seconds_bucket{@}[$__rate_interval])))"
        },
        "s",
    ),
)


def dashboard() -> dict[str, Any]:
    """Give what Grafana imports."""
    shown, x, y, high = [], 0, 0, 0
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > _WIDE:
            x, y = 0, y + high
        shown.append(_shown(panel, number, x, y))
        x, high = x + panel.width, panel.high
    return {
        "title": "kvtier",
        "uid": "kvtier",
        "description": "What kvtier does, why, and what it is worth. docs/metrics.md has every metric.",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "tags": ["vllm", "kvtier"],
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("instance", "label_values(kvtier:off, instance)"),
                _variable("engine", 'label_values(kvtier:off{instance=~"$instance"}, engine)'),
            ]
        },
        "panels": shown,
    }


def _shown(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    queries = zip(panel.queries, panel.expressions, strict=True)
    custom = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if panel.stacked else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.high},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0 if panel.stacked else None, "custom": custom},
            "overrides": [],
        },
        "targets": [
            {"refId": "ABC"[i], "datasource": _SOURCE, "expr": query, "legendFormat": name}
            for i, (name, query) in enumerate(queries)
        ],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def text() -> str:
    """Give the file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
