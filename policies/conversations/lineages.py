"""Which request continued which: conversations, found in nothing but the keys of their prompts.

A request continues a lineage only if it covers that lineage's whole last prompt (but for its last chunk, which may be
cut short): with less, a system prompt that everybody shares would make one lineage of all.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass

from kvtier.facts import RequestFacts
from kvtier.policies.conversations.returns import Watched
from kvtier.types import BlockKey

_LIMIT = 1 << 16  # lineages that are remembered; the one that was used longest ago is forgotten
_GROWN = 0.3  # of a prompt: with more that is new, what it continues is a shared text, not a conversation
_TURNS = (0, 1, 2, 2)  # the class by turn, from 0
_GAPS = (20.0, 60.0)  # seconds: from the fifth turn on, the class goes by the usual gap
_AGED = 3
_WEIGHT = 0.5  # of the last gap in the usual one, a geometric mean
LINEAGE_KINDS = 2 * _AGED + len(_GAPS) + 1


@dataclass(slots=True, eq=False)
class Lineage(Watched):
    """One conversation so far."""

    turn: int = 0
    length: int = 0  # chunks of its last prompt
    grown: bool = False
    tips: tuple[BlockKey, ...] = ()  # where a request that continues it passes
    session: str | None = None
    tail: tuple[BlockKey, ...] = ()  # its deepest chunks, decoded ones included
    arrived_s: float = 0.0  # its last request
    gap_s: float = 0.0  # usual time between two

    def next_kind(self) -> int:
        """Return the class of what is to be expected of it now."""
        turn = _TURNS[self.turn] if self.turn < len(_TURNS) else _AGED
        if turn and self.grown:
            return _AGED + len(_GAPS) + turn
        return turn if turn < _AGED else _AGED + bisect_right(_GAPS, self.gap_s)

    def go_on(self, chunks: int, now: float) -> None:
        """Note its next request."""
        gap_s = max(now - self.arrived_s, 1e-3)
        self.gap_s = self.gap_s ** (1 - _WEIGHT) * gap_s**_WEIGHT if self.turn else gap_s
        self.turn += 1
        self.grown = chunks - self.length > _GROWN * chunks


class Lineages:
    """Lineages by the ends of their last prompts, and by the session that a client named."""

    def __init__(self) -> None:
        self._tips: dict[BlockKey, Lineage] = {}
        self._sessions: dict[str, Lineage] = {}
        self._all: OrderedDict[Lineage, None] = OrderedDict()  # least recently used first

    def follow(self, request: RequestFacts, shared: Container[BlockKey] = ()) -> Lineage:
        """Find the lineage that a request continues, or begin one, and move it on to this prompt.

        `shared` are chunks that belong to no lineage: none ends there.
        """
        keys, session = request.keys, request.hints.session
        lineage = self._sessions.get(session) if session else None
        lineage = lineage or self._passed(keys, session)
        if lineage is None:
            lineage = Lineage()
        else:
            self.forget(lineage)
            lineage.go_on(len(keys), request.arrived_s)
        lineage.arrived_s, lineage.length = request.arrived_s, len(keys)
        lineage.session = session or lineage.session
        lineage.tips = tuple(key for key in keys[-2:] if key not in shared)
        self._know(lineage)
        return lineage

    def forget(self, lineage: Lineage) -> None:
        """Let nobody continue it."""
        for key in lineage.tips:
            if self._tips.get(key) is lineage:
                del self._tips[key]
        if lineage.session and self._sessions.get(lineage.session) is lineage:
            del self._sessions[lineage.session]
        self._all.pop(lineage, None)

    def _know(self, lineage: Lineage) -> None:
        self._all[lineage] = None
        self._tips.update(dict.fromkeys(lineage.tips, lineage))
        if lineage.session:
            self._sessions[lineage.session] = lineage
        if len(self._all) > _LIMIT:
            self.forget(next(iter(self._all)))

    def _passed(self, keys: Sequence[BlockKey], session: str | None) -> Lineage | None:
        """Find the lineage whose end is the last that a prompt passes."""
        for key in reversed(keys):
            lineage = self._tips.get(key)
            if lineage and (not session or lineage.session in (None, session)):
                return lineage
        return None
