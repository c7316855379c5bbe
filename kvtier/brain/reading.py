"""What somebody waits for: the reads of one wave of a request, and one read with all who wait for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operation
from kvtier.brain.requests import Request, Waiter
from kvtier.types import BlockKey


class Outcome(Protocol):
    """Who is told what becomes of the reads of one wave."""

    def hold(self, request: Request, key: BlockKey) -> None:
        """A chunk came up for a request."""

    def over(self, reading: "Reading") -> None:
        """The last read has ended."""

    def expire(self, reading: "Reading") -> None:
        """The request has waited too long, for this wave or for all of them."""


class Reading:
    """The reads that one request waits for; it is told of each one's end.

    Its deadline is one of silence: none of its chunks landed for so long, and none is on its way through a tier that
    reads.
    """

    def __init__(
        self, request: Request, outcome: Outcome, clock: Callable[[], float], *, more: bool
    ) -> None:
        self.request = request
        self.left: dict[BlockKey, LowerTier] = {}  # in the order in which they are served
        self.failed = False  # some read did
        self.more = more  # another wave follows
        self.since = clock()
        self.landings = 0
        self.given = False  # its hit was, before the last of them
        self.whole = False  # it is to be given when all have landed
        self.lowest: LowerTier | None = None
        self.mixed = False  # they come from several tiers
        self._deadline_s = 0.0
        self._outcome = outcome
        self._clock = clock

    def expect(self, key: BlockKey, lower: LowerTier) -> None:
        """Add a read to wait for."""
        self.left[key] = lower
        self._deadline_s = max(self._deadline_s, lower.spec.deadline_s)
        self.mixed |= self.lowest is not None and self.lowest is not lower
        if self.lowest is None or self.lowest.tier < lower.tier:
            self.lowest = lower

    def landed(self, key: BlockKey, *, ok: bool) -> None:
        """Take the news of one key; the last one ends the wait."""
        del self.left[key]
        if ok:
            self.landings += 1
            self.request.heard(self._clock())
            self._outcome.hold(self.request, key)
        else:
            self.failed = True
        if not self.left:
            if self.failed or not self.more:
                self.count_wait()
            self._outcome.over(self)

    def over(self) -> bool:
        """Whether it waited too long; then the request goes on without what is left. O(1) while chunks land."""
        over = self.silent or self.request.overdue(self._clock())
        if over:
            self.count_wait()
            self._outcome.expire(self)
        return over

    def count_wait(self) -> None:
        """Count the whole wait of the request, over all waves, to the tier of the slowest reads."""
        if self.lowest is not None and self.request.began is not None:
            self.lowest.counters.count_wait(self._clock() - self.request.began)

    @property
    def silent(self) -> bool:
        """Whether nothing came, and nothing that was ordered is on its way."""
        if not self.request.silent(self._clock(), self._deadline_s):
            return False
        return all(lower.reads.is_late(key) for key, lower in reversed(self.left.items()))


@dataclass(slots=True)
class Fill:
    """One READ under way into a slot, and who is told that it landed."""

    lower: LowerTier
    operation: Operation
    waiters: list[Waiter] = field(default_factory=list)
    cancelled: bool = False
    ahead: bool = False  # ordered with nobody waiting
