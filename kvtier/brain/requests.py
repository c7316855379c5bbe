"""What the brain remembers of a request between its arrival and its departure."""

from dataclasses import dataclass, field

from kvtier.brain.index import IN_TIER0
from kvtier.facts import RequestFacts, RequestHints
from kvtier.types import BlockKey

_NOBODY = RequestFacts("", (), 0.0, RequestHints())


@dataclass(slots=True)
class Reading:
    """The reads that one request waits for."""

    started: float
    deadline: float
    left: set[BlockKey] = field(default_factory=set)
    nbytes: dict[int, int] = field(default_factory=dict)  # per tier, what was ordered
    failed: bool = False  # some read did: its time says nothing about speed

    def expect(self, key: BlockKey, tier: int, nbytes: int, deadline: float) -> None:
        """Add a read to wait for."""
        self.left.add(key)
        self.nbytes[tier] = self.nbytes.get(tier, 0) + nbytes
        self.deadline = max(self.deadline, deadline)


@dataclass(slots=True)
class Request:
    """One request. `held` are the chunks it pins, each once per mention."""

    name: str
    persist: bool = True
    groups: list[list[BlockKey]] = field(default_factory=list)
    facts: RequestFacts = _NOBODY
    awaited: list[BlockKey] = field(default_factory=list)  # spared until it starts
    started: bool = False  # was scheduled: it waits no more
    touched: set[BlockKey] = field(default_factory=set)  # chunks whose use by it was noted
    places: dict[BlockKey, int] = field(default_factory=dict)
    held: list[BlockKey] = field(default_factory=list)
    given: bool = False  # `held` is a hit that was given, and counted
    reading: Reading | None = None
    refused: bool = False  # reading costs more than computing, until it departs
    stale: bool = False  # its KV is of an epoch that ended
    used: bool = False  # stored or loaded something
    counted: int = 0  # hits that were counted
    below: int = 0  # of the hits to count: came from below tier 0


class Roster:
    """The requests by name, and the tiers that lookups of settled ones see."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.masks: dict[str, int] = {}

    def settled(self, request: Request) -> bool:
        """Whether the request sees tier 0 only: its reads are over, or not worth it."""
        return request.name in self.masks

    def settle(self, request: Request) -> None:
        """Let the request see tier 0 only."""
        self.masks[request.name] = IN_TIER0

    def unsettle(self, request: Request) -> None:
        """Let the request see every tier."""
        self.masks.pop(request.name, None)

    def drop(self, request: str) -> None:
        """Forget a request."""
        self.requests.pop(request, None)
        self.masks.pop(request, None)
