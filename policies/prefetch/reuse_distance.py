"""Bring conversations up shortly before they are expected back, and take them down while they are idle."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policies.conversations.gaps import Gaps
from kvtier.policies.conversations.lineages import LINEAGE_KINDS, Lineage, Lineages
from kvtier.policy import Move, PrefetchPolicy


class ReuseDistancePolicy(PrefetchPolicy):
    """A lineage is expected back after what its class usually takes, give or take a deviation of the logarithm.

    It is brought up when that begins: late is useless, early costs room. What did not come until its end
    goes down, and comes up again when its request arrives, as does what comes sooner than expected.
    """

    class Config(Struct, frozen=True, kw_only=True):
        """Its options, in deviations."""

        early: Annotated[float, Meta(ge=-1000, le=1000)] = 0.0
        late: Annotated[float, Meta(ge=-1000, le=1000)] = 3.0

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._config = config
        self._lineages = Lineages()
        self._gaps = [Gaps() for _ in range(LINEAGE_KINDS)]
        self._running: dict[str, Lineage] = {}

    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        if not request.keys:
            return ()
        lineage = self._lineages.follow(request)
        if lineage.last_s >= 0:
            self._gaps[lineage.kind].add(request.arrived_s - lineage.last_s)
        lineage.kind, lineage.last_s = lineage.next_kind(), -1.0
        self._running[request.name] = lineage
        return [Move(group.keys) for group in request.groups]

    def departed(self, request: RequestFacts) -> Sequence[Move]:
        lineage = self._running.pop(request.name, None)
        if lineage is None:
            return ()
        lineage.last_s = now = self.facts.clock()
        gaps = self._gaps[lineage.kind]

        def idle() -> bool:
            return lineage.last_s == now

        moves = []
        for group in request.groups:
            keys = tuple(group.keys)
            if request.hints.session_end:
                moves.append(Move(keys, now, up=False, still=idle))
            elif gaps.known:
                moves.append(Move(keys, now + gaps.at(-self._config.early), still=idle))
                moves.append(Move(keys, now + gaps.at(self._config.late), up=False, still=idle))
        return moves
