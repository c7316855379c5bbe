"""What the parts of one brain share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kvtier.brain.ahead import Ahead
from kvtier.brain.cost import Costs
from kvtier.brain.flights import Flights
from kvtier.brain.ledger import Ledger
from kvtier.brain.lower import Lower
from kvtier.brain.requests import Layout, Roster
from kvtier.brain.stats import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The state of one brain, without any decision."""

    layout: Layout
    ledger: Ledger
    flights: Flights
    lowers: tuple[Lower, ...]
    roster: Roster
    costs: Costs
    counters: Counters
    clock: Callable[[], float]
    ahead: Ahead = field(default_factory=Ahead)
