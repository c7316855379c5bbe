"""What the brain remembers of a request between its arrival and its departure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kvtier.brain.index import IN_TIER0, TIERS
from kvtier.brain.why import Why
from kvtier.facts import RequestFacts, RequestHints
from kvtier.types import BlockKey

if TYPE_CHECKING:
    from kvtier.brain.asking import Ask
    from kvtier.brain.reading import Reading
    from kvtier.brain.turn import Turn


class Patience(NamedTuple):
    """How long a request waits at most, over all waves, and what it is when that is over."""

    room_s: float  # until its reads are ordered
    hit_s: float  # for its hit
    why: Why


_NO_PATIENCE = Patience(0.0, 0.0, Why.LATE)
_NOBODY = RequestFacts("", (), 0.0, RequestHints())


class Waiter(Protocol):
    """Who is told that a read landed: a request that waits for its hit, or a load that copies what comes."""

    def landed(self, key: BlockKey, *, ok: bool) -> None:
        """Take the news of one key, once: it is readable in tier 0, or will not be."""


@dataclass(slots=True)
class Request:
    """One request. Its fields are written by its own methods only."""

    name: str
    persist: bool = True
    groups: list[list[BlockKey]] = field(default_factory=list)  # keys from chunk 0, per group
    facts: RequestFacts = _NOBODY
    reads: bool = True  # it may use what is kept
    places: dict[BlockKey, int] = field(default_factory=dict)  # a key's position in its group
    tails: dict[BlockKey, int] = field(default_factory=dict)  # where what ends inside a chunk ends
    sees: int = TIERS  # the tiers that its lookups count on
    started: bool = False  # was scheduled: it waits in the queue no more
    awaited: list[BlockKey] = field(default_factory=list)  # spared until it starts
    touched: set[BlockKey] = field(default_factory=set)  # chunks whose use by it was noted
    held: list[BlockKey] = field(default_factory=list)  # pinned, each once per mention
    given: bool = False  # `held` is a hit that was given, and counted
    reading: "Reading | Turn | None" = None  # what it waits for
    asked: bool = False  # all that could be asked for it, was
    asks: "list[Ask]" = field(default_factory=list)  # the questions whose answers it waits for
    patience: Patience = _NO_PATIENCE
    began: float | None = None  # when its wait did; None: it has not
    heard_s: float = 0.0  # when a chunk landed for it last, or its reads were ordered
    tries: int = 0  # to find room, in vain, since it last did
    too_dear: bool = False  # reading costs more than computing, until it departs
    why: Why | None = None  # its hit ended early
    stale: bool = False  # its KV is of an epoch that ended
    used: bool = False  # stored or loaded something
    counted: int = 0  # hits that were counted
    below: int = 0  # of the hits to count: came from below tier 0

    def __post_init__(self) -> None:
        for keys in self.groups:
            self.places.update(zip(keys, range(len(keys)), strict=True))

    def extend(self, position: int, keys: Sequence[BlockKey], *, persist: bool) -> None:
        """Add keys to one of its groups."""
        self.persist &= persist
        start = len(self.groups[position])
        self.groups[position].extend(keys)
        self.places.update(zip(keys, range(start, start + len(keys)), strict=True))

    def end_inside(self, ends: Mapping[BlockKey, int]) -> None:
        """Add keys that end inside a chunk, by the token."""
        self.tails.update(ends)

    def start(self) -> bool:
        """Note that it was scheduled or is over; return whether that is news."""
        news, self.started = not self.started, True
        return news

    def spare(self, keys: Iterable[BlockKey]) -> None:
        """Note what it will ask for."""
        self.awaited.extend(keys)

    def release(self) -> list[BlockKey]:
        """Take what it would have asked for."""
        awaited, self.awaited = self.awaited, []
        return awaited

    def touch(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """Note its use of chunks, given in prefix order; return those that it had not used before, tail first."""
        touched = self.touched
        fresh = [key for key in reversed(keys) if key not in touched]
        touched.update(fresh)
        return fresh

    # what it may read

    @property
    def settled(self) -> bool:
        """Whether it sees tier 0 only: its reads are over, or not worth it."""
        return self.sees == IN_TIER0

    def settle(self) -> None:
        """Let it see tier 0 only, and wait for nothing."""
        self.reading = None
        self.sees = IN_TIER0

    def begin(self, now: float, patience: Patience) -> None:
        """Note that its wait begins."""
        self.patience, self.began = patience, now

    def heard(self, now: float) -> None:
        """Note that a chunk landed for it."""
        self.heard_s = now

    def silent(self, now: float, deadline_s: float) -> bool:
        """Whether no chunk landed for it for so long."""
        return now >= self.heard_s + deadline_s

    def overdue(self, now: float) -> bool:
        """Whether its whole wait is over."""
        return self.began is not None and now >= self.began + self.patience.hit_s

    def impatient(self, now: float) -> bool:
        """Whether it waits for room no longer."""
        return self.began is not None and now >= self.began + self.patience.room_s

    def await_reads(self, reading: "Reading", now: float) -> None:
        """Let it wait for reads."""
        self.reading = reading
        self.heard_s = now
        self.tries = 0

    def await_turn(self, turn: "Turn") -> None:
        """Let it wait for room."""
        self.reading = turn
        self.tries += 1

    def give_up(self) -> "Reading | Turn | None":
        """Stop to wait; return what it waited for."""
        reading, self.reading = self.reading, None
        return reading

    def abandon(self) -> "Reading | Turn | None":
        """Stop to wait for all of its hit; a later wait is another one."""
        self.began, self.tries = None, 0
        return self.give_up()

    def refuse(self, why: Why) -> bool:
        """Note why its hit ends early; return whether that is the first reason."""
        self.too_dear |= why is Why.TOO_DEAR
        if self.why is not None:
            return False
        self.why = why
        return True

    # what it holds

    def hold(self, keys: list[BlockKey]) -> list[BlockKey]:
        """Hold `keys` instead of what it held, which is returned."""
        held, self.held = self.held, keys
        self.given = False
        return held

    def hold_more(self, key: BlockKey) -> None:
        """Hold a chunk that came up for it."""
        self.below += 1
        self.held.append(key)

    def lose(self, key: BlockKey) -> int:
        """Hold a chunk no more; return how often it was held."""
        n = self.held.count(key)
        if n:
            self.held = [held for held in self.held if held != key]
        return n

    def give(self, n: int) -> tuple[int, int]:
        """Note that a hit of `n` chunks is given.

        Returns:
            How many of them were counted before, and how many of the others came from below tier 0.
        """
        counted, below = self.counted, self.below
        self.counted = max(counted, n)
        self.below = 0
        self.given = True
        return counted, below

    # its life

    def use(self) -> None:
        """Note that it stores or loads."""
        self.used = True

    def reset(self, *, stale: bool) -> None:
        """Forget what was of the old epoch; its KV is, if it is `stale` or used the cache."""
        self.held, self.given, self.reading, self.asks = [], False, None, []
        self.counted = self.below = 0
        self.stale |= stale or self.used
        self._see_again()

    def preempt(self) -> None:
        """Start again from nothing."""
        self.stale = self.used = False
        if self.reading is None:
            self._see_again()

    def _see_again(self) -> None:
        if not self.too_dear:
            self.sees = TIERS
            self.why = None
            self.began, self.tries = None, 0
