"""By the chance that the conversation goes on: what lineage, turn and idle time tell (docs/policies.md)."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policies.conversations import KINDS, Conversations
from kvtier.policies.conversations.expiries import Expiries
from kvtier.policies.conversations.lineages import Lineage
from kvtier.policies.conversations.returns import Watched
from kvtier.policies.kit.ends import TwoEndedPolicy
from kvtier.policies.kit.heap import Leaf
from kvtier.types import BlockKey

_ENDS = 4  # lineages whose time is over that one search declares dead: each may be long
_DEAD = 0  # the queue of what nobody will ask for again
_WEIGHTS = (1.0, 4.0, 0.25)  # of an equal, a higher, a lower priority


class End(NamedTuple):
    """The leaf at one end of a queue: the one that is worth least leaves."""

    worth: float
    rank: float
    queue: int
    highest: bool


class SessionPolicy(TwoEndedPolicy):
    """Chunks queue by the class of their lineage. Of the ends of all queues, the one worth least leaves.

    Where two lineages part ends a shared prefix, which lives by its own uses. What a lineage did not use
    when it went on is dead, and leaves first.
    """

    queues = 1 + KINDS * len(_WEIGHTS)

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._last: End | None = None
        self._owner = self.column("q")  # the number of a chunk's mark
        self._start()

    def clear(self) -> None:
        super().clear()
        self._start()

    def arrived(self, request: RequestFacts) -> None:
        if request.keys:
            lineage, leaf = self._told.arrived(request)
            if leaf is not None:
                self._bury(leaf, lineage)

    def departed(self, request: RequestFacts) -> None:
        lineage = self._told.departed(request)
        if lineage is None:
            return
        for key in request.keys[lineage.length :]:
            self._settle(key, lineage)
        if request.hints.session_end:
            self._bury(request.keys[-1], lineage)
            return
        for key in self._told.waste(request.keys):
            self._kill(key, lineage)
        if request.hints.ttl_s is not None:
            self._expiries.add(lineage, request.hints.ttl_s)

    def entered(self, row: int, key: BlockKey) -> None:
        self._mark(row, self._told.marks.get(key), 1)

    def used(self, row: int, key: BlockKey) -> None:
        self._mark(row, self._told.marks.get(key), self.queue[row])

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        now = self.facts.clock()
        self._told.times.fit(now)
        for lineage in islice(self._expiries.due(now), _ENDS):
            self._bury(lineage.tail[-1], lineage)
        self._last = None
        return super().victims(n, pinned)

    def pick(self) -> Leaf | None:
        if leaf := self.pop(_DEAD):
            return leaf
        if not self._goes_on():
            self._last = self._least()
        if self._last is None:
            return None
        queue = self._last.queue
        return self.pop_highest(queue) if self._last.highest else self.pop(queue)

    def _start(self) -> None:
        self._told = Conversations(self._parts)
        self._expiries = Expiries()
        self._last = None

    def _goes_on(self) -> bool:
        """Whether the lineage of the last victim has more: it is worth no more than before."""
        last = self._last
        leaf = last and self._at(last.queue, highest=last.highest)
        return bool(last and leaf and leaf.rank == last.rank)

    def _least(self) -> End | None:
        now = self.facts.clock()
        least: End | None = None
        for queue in range(1, self.queues):
            level, kind = divmod(queue - 1, KINDS)
            for highest in (False, True) if self.counts[queue] else ():
                if leaf := self._at(queue, highest=highest):
                    worth = self._told.times.index(kind, now - leaf.rank) * _WEIGHTS[level]
                    if least is None or worth < least.worth:
                        least = End(worth, leaf.rank, queue, highest)
        return least

    def _at(self, queue: int, *, highest: bool) -> Leaf | None:
        return self.peek_highest(queue) if highest else self.peek(queue)

    def _mark(self, row: int, mark: Watched | None, queue: int) -> None:
        """Place a chunk where its mark belongs; without one, as one used now."""
        if mark is None:
            self.place(row, queue, self.facts.clock())
        else:
            self._owner[row] = mark.number
            self.place(row, 1 + mark.kind + KINDS * mark.level, mark.last_s)

    def _settle(self, key: BlockKey, lineage: Lineage) -> None:
        row = self.row(key)
        if row is not None:
            self._mark(row, lineage, 1)

    def _kill(self, key: BlockKey, lineage: Lineage) -> None:
        row = self.row(key)
        if row is not None and self._owner[row] == lineage.number:
            self.place(row, _DEAD, self.ranks[row])

    def _bury(self, leaf: BlockKey, lineage: Lineage) -> None:
        """Declare dead what is a lineage's own, from its leaf up to what a request under way uses."""
        row = self.row(leaf)
        for each in () if row is None else (row, *self.above(row)):
            if self._owner[each] != lineage.number or self.keys[each] in self._told.marks:
                return
            self.place(each, _DEAD, self.ranks[each])

    def _parts(self, keys: Sequence[BlockKey], lineage: Lineage) -> int:
        """Count the chunks at the start of a prompt that are here.

        The answer is 0 if the last of these chunks belongs to `lineage` itself: then nothing is shared.
        """
        here, last = 0, None
        for key in keys:
            row = self.row(key)
            if row is None:
                break
            here, last = here + 1, row
        return 0 if last is None or self._owner[last] == lineage.number else here
