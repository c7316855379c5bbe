"""What the brain remembers of a request between its arrival and its departure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.index import IN_TIER0
from kvtier.types import BlockKey, GroupSpec

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


class Place(NamedTuple):
    """Where a chunk stands in its sequence."""

    parent: BlockKey | None
    end: int


Spot = tuple[BlockKey | None, int]  # a `Place` for loops over every chunk


class Layout:
    """The KV-cache groups: turns a chunk's index in a request into its place."""

    def __init__(self, groups: Sequence[GroupSpec]) -> None:
        self.groups = tuple(groups)
        self._positions = {g.index.to_bytes(4, "big"): i for i, g in enumerate(groups)}

    def position(self, key: BlockKey) -> int:
        """Return the position of a key's group among the groups."""
        return self._positions[key[-4:]]

    def group(self, key: BlockKey) -> GroupSpec:
        """Return a key's group."""
        return self.groups[self._positions[key[-4:]]]

    def spans(self, request: Request, keys: Sequence[BlockKey]) -> dict[BlockKey, tuple[int, int]]:
        """Return the first and the end token of each key that is the request's."""
        spans = {}
        for key in keys:
            i = request.places.get(key)
            if i is not None:
                tokens = self.group(key).chunk_tokens
                spans[key] = (i * tokens, (i + 1) * tokens)
        return spans

    def place(self, request: Request, key: BlockKey) -> Place | None:
        """Return where a key stands in a request, None if it is not one of its keys."""
        spot = self.spot(request, key)
        return None if spot is None else Place(*spot)

    def spot(self, request: Request, key: BlockKey) -> Spot | None:
        """Return what `place` does as a plain pair: for loops over every chunk."""
        i = request.places.get(key)
        if i is None:
            return None
        position = self._positions[key[-4:]]
        group = self.groups[position]
        if i == 0 or group.window_chunks is not None:
            return None, (i + 1) * group.chunk_tokens
        return request.groups[position][i - 1], (i + 1) * group.chunk_tokens

    def spots(self, request: Request, keys: Sequence[BlockKey]) -> list[Spot | None]:
        """Return the `spot` of each key."""
        if len(self.groups) > 1 or self.groups[0].window_chunks is not None:
            return [self.spot(request, key) for key in keys]
        prefix, tokens = request.groups[0], self.groups[0].chunk_tokens
        return [
            None if i is None else (prefix[i - 1] if i else None, (i + 1) * tokens)
            for i in map(request.places.get, keys)
        ]

    def keys(self, groups: Sequence[Sequence[BlockKey]]) -> tuple[GroupKeys, ...]:
        """Return a request's keys with what their groups are."""
        return tuple(
            GroupKeys(keys, group.chunk_tokens, group.window_chunks)
            for group, keys in zip(self.groups, groups, strict=True)
        )

    def placing(self, keys: Sequence[BlockKey], position: int) -> Callable[[int], Place]:
        """Return what gives the place of chunk `i` of a group's keys."""
        return lambda i: self.at(keys, position, i)

    def at(self, keys: Sequence[BlockKey], position: int, i: int) -> Place:
        """Return the place of chunk `i` of a group; a window's chunks have no parents."""
        group = self.groups[position]
        rooted = i == 0 or group.window_chunks is not None
        return Place(None if rooted else keys[i - 1], (i + 1) * group.chunk_tokens)
