"""The reads of one tier under way: what counts against its budget, and what is late."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from kvtier.types import BlockKey


class _Read(NamedTuple):
    number: int  # in the order in which they are served
    since: float


class _Line:
    """Reads that are served in this order. One is late if, for a deadline, neither it nor one before it was answered."""

    def __init__(self, deadline_s: float) -> None:
        self.reads: OrderedDict[BlockKey, _Read] = OrderedDict()
        self._deadline_s = deadline_s
        self._moved = -1.0  # when the last one was answered of those before the first of `reads`
        self._answers: deque[tuple[int, float]] = deque()  # the later, the higher its number

    def add(self, key: BlockKey, read: _Read) -> None:
        """Queue a read."""
        self.reads[key] = read

    def take(self, key: BlockKey) -> bool:
        """Take a read out; return whether it was here."""
        return self.reads.pop(key, None) is not None

    def answered(self, number: int, now: float) -> None:
        """Note an answer: whoever stands behind that read has not waited in vain."""
        while self._answers and self._answers[-1][0] >= number:
            self._answers.pop()
        self._answers.append((number, now))

    def moved(self, now: float) -> None:
        """Note the answer to a read that goes before all of these."""
        self._moved = now
        self._answers.clear()

    @property
    def due(self) -> float:
        """When the first of these is late at the earliest: an answer only puts it off."""
        first = next(iter(self.reads.values()), None)
        if first is None:
            return math.inf
        return max(first.since, self._moved) + self._deadline_s

    def late(self, now: float) -> list[tuple[BlockKey, float]]:
        """Take out what is late, with when it was due. What stands behind falls due later."""
        late = []
        while self.reads:
            key, (number, since) = next(iter(self.reads.items()))
            while self._answers and self._answers[0][0] < number:
                self._moved = self._answers.popleft()[1]
            due = max(since, self._moved) + self._deadline_s
            if now < due:
                break
            self.take(key)
            late.append((key, due))
        return late


class Reads:
    """Reads in the order in which they are served: first those that somebody waits for, then the reads ahead.

    Nobody waits for a late one; its slot does, until it is answered. A tier hangs if one of its reads is late by a
    whole deadline more. Reads that were ordered before the tier rested are excused: what they say was heard.
    """

    def __init__(self, deadline_s: float, clock: Callable[[], float]) -> None:
        self._deadline_s = deadline_s
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget all of them."""
        self.demanded: set[BlockKey] = set()  # somebody waits, or did; the late ones too
        self._numbers: dict[BlockKey, int] = {}  # of all that are not answered yet
        self._next = 0
        self._awaited = _Line(self._deadline_s)
        self._ahead = _Line(self._deadline_s)
        self._late: OrderedDict[BlockKey, float] = OrderedDict()  # with when they were due
        self._look_at = math.inf  # until then no more are late
        self._excused = -1.0  # what was due by then is

    @property
    def all(self) -> int:
        """How many are not answered yet."""
        return len(self._numbers)

    def begin(self, key: BlockKey, *, demanded: bool) -> None:
        """Note a read that was ordered."""
        if demanded:
            self.demanded.add(key)
        self._queue(self._awaited if demanded else self._ahead, key)

    def demand(self, key: BlockKey) -> None:
        """Note that somebody waits for a read from now on."""
        self._look()
        if self._ahead.take(key):
            self.demanded.add(key)
            self._queue(self._awaited, key)

    def end(self, key: BlockKey) -> None:
        """Note the answer to a read."""
        self._look()
        now, number = self._clock(), self._numbers.pop(key)
        if key in self.demanded:
            self.demanded.remove(key)
            self._awaited.answered(number, now)
            self._ahead.moved(now)
        else:
            self._ahead.answered(number, now)
        self._awaited.take(key)
        self._ahead.take(key)
        self._late.pop(key, None)

    def is_late(self, key: BlockKey) -> bool:
        """Whether a read under way is past its deadline."""
        self._look()
        return key not in self._awaited.reads and key not in self._ahead.reads

    @property
    def in_time(self) -> int:
        """How many that somebody waits for are not late."""
        self._look()
        return len(self._awaited.reads)

    @property
    def ahead(self) -> int:
        """How many that nobody waits for are not late."""
        self._look()
        return len(self._ahead.reads)

    @property
    def hung(self) -> bool:
        """Whether one is late by more than the deadline once more."""
        self._look()
        first = next(iter(self._late.values()), None)
        return first is not None and first + self._deadline_s < self._clock()

    def excuse(self) -> None:
        """Hold what is under way against the tier no more."""
        self._late.clear()
        self._excused = self._clock() + self._deadline_s

    def _queue(self, line: _Line, key: BlockKey) -> None:
        now = self._clock()
        self._next += 1
        self._numbers[key] = self._next
        line.add(key, _Read(self._next, now))
        self._look_at = min(self._look_at, now + self._deadline_s)

    def _look(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        for line in (self._awaited, self._ahead):
            for key, due in line.late(now):
                if due > self._excused:
                    self._late[key] = due
        self._look_at = min(self._awaited.due, self._ahead.due)
