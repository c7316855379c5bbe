"""The brain: it decides where every chunk is and what moves next. A pure state machine: no I/O, no threads."""

from kvtier.brain.cache import TieredCache
from kvtier.brain.plans import CacheEvent, LoadPlan, ReadPlan, StorePlan, TierSpec
from kvtier.brain.stats import CacheStats, TierStats

__all__ = [
    "CacheEvent",
    "CacheStats",
    "LoadPlan",
    "ReadPlan",
    "StorePlan",
    "TierSpec",
    "TierStats",
    "TieredCache",
]
