"""What two scrapes of a server say: where prompt tokens came from, what that was worth, how the tiers do, what is wrong."""

from collections.abc import Iterable
from math import inf, nan

from msgspec import Struct

from kvtier.top.scrape import Scrape

COMPUTED, HBM = "computed", "hbm"


class Spread(Struct, frozen=True):
    """A distribution, as far as a histogram's buckets tell it."""

    count: int
    p50_s: float  # nan where there is none
    p95_s: float


class TierFacts(Struct, frozen=True):
    """One tier; bytes of all ranks together."""

    name: str
    used: int
    capacity: int
    read_rate: float  # bytes per second
    write_rate: float
    medium_rate: float  # what reads were measured to reach; 0: not yet
    wait: Spread
    failures: dict[str, int]  # by cause, in the window
    failed: int  # since the server started
    in_flight: int
    resting: bool
    saved_s: float
    spent_s: float


class Facts(Struct, frozen=True):
    """All that is shown of one server, of the window between two scrapes."""

    seconds: float  # of the window; nan: since the server started
    engines: int
    off: bool
    tokens: dict[str, int]  # of prompts, by where their KV came from
    tiers: list[TierFacts]
    ttft: dict[str, Spread]  # by source of the prefix
    misses: dict[str, int]  # computed tokens by reason, the most first
    saved_s: float
    spent_s: float
    resets: int
    quarantined: int

    @property
    def reused(self) -> float:
        """The share of prompt tokens that were not computed; nan without any."""
        total = sum(self.tokens.values())
        return 1 - self.tokens.get(COMPUTED, 0) / total if total else nan

    @property
    def wrong(self) -> list[str]:
        """What somebody should look at, in words; docs/operations.md says what to do."""
        found = ["kvtier is off: the engine's log says why"] if self.off else []
        for tier in self.tiers:
            if tier.resting:
                found.append(f"{tier.name} rests after failures")
            elif tier.failures:
                causes = ", ".join(f"{count} {cause}" for cause, count in tier.failures.items())
                found.append(f"{tier.name}: {causes}")
        if self.quarantined:
            found.append(f"{self.quarantined} slots wait for a tier that does not answer")
        return found


def facts(now: Scrape, before: Scrape | None = None, rates_from: Scrape | None = None) -> Facts:
    """Say what happened from `before` until `now`; without it, since the server started.

    Rates are of the time from `rates_from`, or `before`, until now.
    """
    window, rates = now.since(before), now.since(rates_from or before)
    names = now.by("tier_capacity_bytes", "tier")
    seconds = rates.at if (rates_from or before) else nan
    tiers = [_tier(name, now, window, rates, seconds) for name in names]
    known = (COMPUTED, HBM, "other", *names)
    ttft = {name: spread(window, "ttft_seconds", source=name) for name in known}
    misses = {reason: int(n) for reason, n in window.by("misses_total", "reason").items() if n}
    return Facts(
        seconds=window.at if before else nan,
        engines=now.engines,
        off=now.total("off") > 0,
        tokens={name: int(n) for name, n in window.by("prompt_tokens_total", "tier").items()},
        tiers=tiers,
        ttft={name: each for name, each in ttft.items() if each.count},
        misses=dict(sorted(misses.items(), key=lambda item: -item[1])),
        saved_s=window.total("saved_prefill_seconds_total"),
        spent_s=window.total("tier_spent_seconds_total"),
        resets=int(window.total("resets_total")),
        quarantined=int(now.total("quarantined_slots")),
    )


def spread(window: Scrape, metric: str, **labels: str) -> Spread:
    """Estimate a histogram's quantiles as Prometheus does: linear within a bucket, its upper edge in the last."""
    buckets = window.by(f"{metric}_bucket", "le", **labels)
    edges = sorted((float(edge), count) for edge, count in buckets.items())
    count = int(edges[-1][1]) if edges else 0
    return Spread(count, _quantile(edges, 0.5), _quantile(edges, 0.95))


def _quantile(edges: Iterable[tuple[float, float]], share: float) -> float:
    edges = list(edges)
    if not edges or not edges[-1][1]:
        return nan
    rank = share * edges[-1][1]
    low, below = 0.0, 0.0
    for edge, count in edges:
        if count >= rank:
            return low if edge == inf else low + (edge - low) * (rank - below) / (count - below)
        low, below = edge, count
    return low


def _tier(name: str, now: Scrape, window: Scrape, rates: Scrape, seconds: float) -> TierFacts:
    failures = window.by("tier_failures_total", "cause", tier=name)
    return TierFacts(
        name=name,
        used=int(now.total("tier_used_bytes", tier=name)),
        capacity=int(now.total("tier_capacity_bytes", tier=name)),
        read_rate=rates.total("tier_read_bytes_total", tier=name) / seconds,
        write_rate=rates.total("tier_write_bytes_total", tier=name) / seconds,
        medium_rate=now.total("tier_medium_bytes_per_second", tier=name),
        wait=spread(window, "tier_read_wait_seconds", tier=name),
        failures={cause: int(count) for cause, count in failures.items() if count},
        failed=int(now.total("tier_failures_total", tier=name)),
        in_flight=int(now.total("tier_in_flight", tier=name)),
        resting=now.total("tier_resting", tier=name) > 0,
        saved_s=window.total("saved_prefill_seconds_total", tier=name),
        spent_s=window.total("tier_spent_seconds_total", tier=name),
    )
