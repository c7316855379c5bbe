"""Hooks: small callables of the user's that hear what happens to chunks, and may object.

A hook is called on EngineCore's thread, between two steps of the engine: it must be quick. It is never
trusted: what it raises is swallowed, and after a few failures it is called no more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from kvtier.types import BlockKey


class HookKind(StrEnum):
    """When a hook is called."""

    INSERT = "on_insert"  # a chunk is about to enter a tier; False refuses it
    EVICT = "on_evict"  # a chunk is about to leave a tier for lack of room; False asks for another
    DEMOTE = "on_demote"  # a lower tier has a record of it now
    PROMOTE = "on_promote"  # it was read up from a lower tier
    HIT = "on_hit"  # a request found it
    MISS = "on_miss"  # a request had to compute it


class HookEvent(NamedTuple):
    """One chunk to which something happens."""

    kind: HookKind
    tier: str  # by its name in the configuration
    key: BlockKey
    end_token: int  # where it ends in its sequence; 0: not known yet
    nbytes: int  # in this tier, on one rank
    seconds: float  # of prefill that a hit on it saves


Hook = Callable[[HookEvent], bool | None]
"""Only `False` is an objection, and only to INSERT and EVICT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSet:
    """The hooks of one brain, and what they may do."""

    hooks: Mapping[HookKind, Sequence[Hook]] = field(default_factory=dict)
    budget_s: float = 1e-3  # of one call; longer is a failure
    max_failures: int = 3  # of one hook, until it is called no more
    max_vetoes: int = 16  # evictions refused per call for victims; what is chosen then goes
