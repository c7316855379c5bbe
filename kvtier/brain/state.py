"""What the parts of one brain share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kvtier.brain.cost import Costs
from kvtier.brain.counters import Counters, ReadAhead
from kvtier.brain.groups import Groups
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operations
from kvtier.brain.requests import Roster
from kvtier.brain.residency import Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state of one brain, without any decision."""

    groups: Groups
    residency: Residency
    operations: Operations
    lowers: tuple[LowerTier, ...]
    roster: Roster
    costs: Costs
    counters: Counters
    clock: Callable[[], float]
    ahead: ReadAhead = field(default_factory=ReadAhead)
