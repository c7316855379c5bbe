"""The brain: it decides where every chunk is and what moves next. A pure state machine: no I/O, no threads."""

from kvtier.brain.cache import TieredCache
from kvtier.brain.plans import CacheEvent, LoadPlan, ReadPlan, StorePlan, TierSpec
from kvtier.brain.stats import CacheStats, TierStats
from kvtier.brain.view import CacheView
from kvtier.brain.why import Why

__all__ = [
    "CacheEvent",
    "CacheStats",
    "CacheView",
    "LoadPlan",
    "ReadPlan",
    "StorePlan",
    "TierSpec",
    "TierStats",
    "TieredCache",
    "Why",
]
