"""How the figures of one server are written, on the screen and on the page alike."""

from math import isnan

from kvtier.top.facts import Facts, TierFacts
from kvtier.units import format_nbytes

TIER_HEADS = ("tier", "used", "of", "full", "read/s", "reaches", "write/s", "wait p95", "failed")


def tier_cells(tier: TierFacts) -> list[str]:
    """Write one tier, below TIER_HEADS."""
    return [
        tier.name,
        format_nbytes(tier.used),
        format_nbytes(tier.capacity),
        share(tier.used, tier.capacity),
        rate(tier.read_rate),
        rate(tier.medium_rate or float("nan")),
        rate(tier.write_rate),
        seconds(tier.wait.p95_s),
        f"{tier.failed}, rests" if tier.resting else f"{tier.failed}",
    ]


def span(facts: Facts) -> str:
    """Say of what time the figures are, and of how many engines."""
    more = f"{facts.engines} engines, " if facts.engines > 1 else ""
    if isnan(facts.seconds):
        return f"{more}since its start (/s: of the last two looks)"
    return f"{more}last {facts.seconds:.0f} s"


def worth(facts: Facts) -> str:
    """Say what the hits saved, and what waiting for them cost."""
    return f"saved {seconds(facts.saved_s)} of prefill, spent {seconds(facts.spent_s)} of waits"


def share(part: float, whole: float) -> str:
    """Write a share; nothing of nothing is a dash."""
    return f"{part / whole:.0%}" if whole else "-"


def rate(nbytes: float) -> str:
    """Write bytes per second; nan is a dash."""
    return "-" if isnan(nbytes) else format_nbytes(nbytes)


def seconds(duration: float) -> str:
    """Write seconds, or milliseconds; nan is a dash."""
    if isnan(duration):
        return "-"
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:,.1f} s"
