"""Which request continued which: conversations, found in nothing but the keys of their prompts.

A request continues a lineage only if it covers that lineage's whole last prompt (but for its last chunk, which may be
cut short): with less, a system prompt that everybody shares would make one lineage of all.
"""

from collections import OrderedDict
from dataclasses import dataclass

from kvtier.facts import RequestFacts
from kvtier.policies.returns import Watched
from kvtier.types import BlockKey

_LIMIT = 1 << 16  # lineages that are remembered; the one that was used longest ago is forgotten
_GROWN = 0.3  # of a prompt: with more that is new, what it continues is a shared text, not a conversation
_TURNS = (0, 1, 2, 2)  # the class by turn; from the fifth on the next
KINDS = 7


@dataclass(slots=True, eq=False)
class Lineage(Watched):
    """One conversation so far."""

    turn: int = 0
    length: int = 0  # chunks of its last prompt
    grown: bool = False
    tips: tuple[BlockKey, ...] = ()  # where a request that continues it passes
    session: str | None = None
    leaf: BlockKey | None = None  # its deepest chunk, decoded ones included
    gap_s: float = 0.0  # between its last two requests

    def next_kind(self) -> int:
        """Return the class of what is to be expected of it now."""
        turn = _TURNS[self.turn] if self.turn < len(_TURNS) else 3
        return turn + 3 if self.grown and turn else turn


class Lineages:
    """Lineages by the ends of their last prompts, and by the session that a client named."""

    def __init__(self) -> None:
        self._tips: dict[BlockKey, Lineage] = {}
        self._sessions: dict[str, Lineage] = {}
        self._all: OrderedDict[int, Lineage] = OrderedDict()  # by id(), least recently used first

    def follow(self, request: RequestFacts, shared: frozenset[BlockKey] | set[BlockKey]) -> Lineage:
        """Find the lineage that a request continues, or begin one, and move it on to this prompt.

        `shared` are chunks that belong to no lineage: none ends there.
        """
        keys, session = request.keys, request.hints.session
        known = self._sessions.get(session) if session else None
        lineage = known or self._passed(keys, session)
        if lineage is None:
            lineage = Lineage(session=session)
        else:
            self._leave(lineage)
            lineage.turn += 1
            lineage.gap_s = request.arrived_s - lineage.last_s
            lineage.grown = len(keys) - lineage.length > _GROWN * len(keys)
        lineage.length = len(keys)
        self._end(lineage, [key for key in keys[-2:] if key not in shared])
        return lineage

    def forget(self, lineage: Lineage) -> None:
        """Let nobody continue it."""
        self._leave(lineage)
        self._all.pop(id(lineage), None)

    def _passed(self, keys: object, session: str | None) -> Lineage | None:
        raise NotImplementedError
