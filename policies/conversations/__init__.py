"""What requests tell of each other: whose a chunk is, and when it may be asked for again."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtier.facts import RequestFacts
from kvtier.policies.conversations.forks import FORK_KINDS, Forks
from kvtier.policies.conversations.lineages import LINEAGE_KINDS, Lineage, Lineages
from kvtier.policies.conversations.returns import ReturnTimes, Watched
from kvtier.policies.conversations.tails import DEPTH, Tails
from kvtier.types import BlockKey

KINDS = LINEAGE_KINDS + FORK_KINDS


class Followed(NamedTuple):
    """The lineage of a request, and its deepest chunk before that; None if it begins."""

    lineage: Lineage
    leaf: BlockKey | None


class Conversations:
    """Each chunk of a request under way has a mark: its lineage, or the shared prefix that it belongs to.

    `parts` tells how many chunks at the start of a prompt are here, if the last of them is another lineage's.
    """

    def __init__(self, parts: Callable[[Sequence[BlockKey], Lineage], int]) -> None:
        self.times = ReturnTimes(KINDS)
        self.marks: dict[BlockKey, Watched] = {}
        self._parts = parts
        self._lineages = Lineages()
        self._forks = Forks()
        self._tails = Tails()
        self._running: dict[str, Lineage] = {}

    def arrived(self, request: RequestFacts) -> Followed:
        """Mark a request's chunks with the lineage that it continues or begins."""
        keys, now = request.keys, request.arrived_s
        lineage = self._lineages.follow(request, self._forks)
        lineage.level = (request.hints.priority > 0) + 2 * (request.hints.priority < 0)
        self._running[request.name] = lineage
        self.times.used(lineage, lineage.next_kind(), now)
        for group in request.groups:
            self.marks.update(dict.fromkeys(group.keys, lineage))
        self._share(keys, lineage, now)
        tail, lineage.tail = lineage.tail, tuple(keys[-DEPTH:])
        if not tail:
            return Followed(lineage, None)
        self._tails.went_on(tail, self.marks)
        return Followed(lineage, tail[-1])

    def departed(self, request: RequestFacts) -> Lineage | None:
        """Forget a request's marks; return its lineage."""
        lineage = self._running.pop(request.name, None)
        if lineage is not None:
            lineage.tail = tuple(request.keys[-DEPTH:])
            for group in request.groups:
                for key in group.keys:
                    self.marks.pop(key, None)
        return lineage

    def waste(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """Return the chunks at the end of a prefix that its lineage is not going to use, as a rule."""
        return keys[len(keys) - self._tails.waste() :]

    def _share(self, keys: Sequence[BlockKey], lineage: Lineage, now: float) -> None:
        depth = self._forks.depth(keys)
        parts = self._parts(keys, lineage)
        if parts > depth:
            self._forks.add(keys[parts - 1])
            depth = parts
        mark: Watched = lineage
        for i in range(depth - 1, -1, -1):
            fork = self._forks.use(keys[i])
            if fork is not None:
                self.times.used(fork, LINEAGE_KINDS + fork.next_kind(), now)
                mark = fork
            self.marks[keys[i]] = mark
