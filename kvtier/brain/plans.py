"""What the brain is told and what it answers: its vocabulary towards the connector and the simulator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from kvtier.facts import TierFacts
from kvtier.policy import AdmissionPolicy, EvictionPolicy
from kvtier.types import BlockKey, Medium, WriteMode


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """What the brain must know of one tier below the arena."""

    name: str
    capacity: int | None  # bytes of one rank's share; None: its room is not ours
    write: WriteMode
    deadline_s: float
    persistent: bool
    eviction: Callable[[TierFacts], EvictionPolicy] | None  # None where its room is not ours
    admission: Callable[[TierFacts], AdmissionPolicy] | None = None  # None: every chunk may enter
    medium: Medium | None = None  # None: how fast it is, is found out
    once: bool = False  # one rank keeps the records of all
    max_writes: int = 64  # demotions in operation
    max_idle_writes: int = 512  # what an engine that falls idle still gets written


class ReadPlan(NamedTuple):
    """What `plan_read` ordered."""

    reading: int  # reads under way for the request; 0: ask the lookups again
    keys: tuple[BlockKey, ...] = ()  # the chunks that come from below tier 0


class LoadPlan(NamedTuple):
    """Slots to copy to the device; NO_SLOT where the chunk is gone."""

    plan_id: int
    slots: tuple[int, ...]
    reads: Mapping[int, int] = MappingProxyType({})
    """By position, the READ whose answer a copy has to wait for."""
    patience_s: float = 0.0  # after so long nobody waits for such an answer any more


class StorePlan(NamedTuple):
    """Slots to copy from the device. Keys in neither list are not wanted."""

    plan_id: int
    keys: tuple[BlockKey, ...]
    slots: tuple[int, ...]
    no_room: tuple[BlockKey, ...]  # refused for lack of room only: offer them again


class CacheEvent(NamedTuple):
    """Chunks that became readable in a tier, or left it."""

    tier: int
    name: str
    keys: tuple[BlockKey, ...]
    removed: bool
