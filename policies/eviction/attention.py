"""Score-weighted eviction with recency protection: what attention will hardly look at leaves first.

The score comes from the tier's facts, whoever supplies it. Where there is none this is LRU with
protection.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policies.kit.heap import Leaf
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.types import BlockKey

_OPEN, _PROTECTED = range(2)
_LIMIT = 1 << 16  # sessions: where many end in the same chunks, their share bounds nothing


class AttentionPolicy(PrefixPolicy):
    """Rank by the last use plus `weight` * score * chunks: a full score is worth so many turnovers of the tier.

    The last `protect` chunks of a session (without `session_id`: of a request) leave after all others, and with
    them, by the prefix rule, all that they continue. At most `share` of the chunks is protected so: the
    sessions whose last request is longest ago lose it first.
    """

    queues = 2
    scored = True

    class Config(Struct, frozen=True, kw_only=True):
        weight: Annotated[float, Meta(ge=0, le=1e6)] = 0.5
        protect: Annotated[int, Meta(ge=0)] = 4  # chunks
        share: Annotated[float, Meta(ge=0, le=1)] = 0.25  # of all chunks

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._config = config
        self._recent: OrderedDict[str, list[BlockKey]] = OrderedDict()  # by session, oldest first
        self._guards: dict[BlockKey, int] = {}  # sessions that protect a chunk

    def used(self, row: int, key: BlockKey) -> None:
        bonus = self._config.weight * (self.facts.score(key) or 0.0) * sum(self.counts)
        self.place(row, _PROTECTED if key in self._guards else _OPEN, self.tick + bonus)

    def departed(self, request: RequestFacts) -> None:
        session = request.hints.session or request.name
        self._release(self._recent.pop(session, ()))
        if request.hints.session_end or not self._config.protect:
            return
        keys = [key for group in request.groups for key in group.keys[-self._config.protect :]]
        if not keys:
            return
        self._recent[session] = keys
        for key in keys:
            self._guards[key] = self._guards.get(key, 0) + 1
        self._requeue(keys, _PROTECTED)
        most = self._config.share * sum(self.counts)
        while self._recent and (len(self._guards) > most or len(self._recent) > _LIMIT):
            self._release(self._recent.popitem(last=False)[1])

    def pick(self) -> Leaf | None:
        return self.pop(_OPEN) or self.pop(_PROTECTED)

    def clear(self) -> None:
        super().clear()
        self._recent.clear()
        self._guards.clear()

    def _release(self, keys: Iterable[BlockKey]) -> None:
        free = []
        for key in keys:
            self._guards[key] -= 1
            if not self._guards[key]:
                del self._guards[key]
                free.append(key)
        self._requeue(free, _OPEN)

    def _requeue(self, keys: Iterable[BlockKey], queue: int) -> None:
        for key in keys:
            row = self.row(key)
            if row is not None:
                self.place(row, queue, self.ranks[row])
