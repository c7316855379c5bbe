"""Admit what a second request has in its prefix: most prefixes never return."""

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policies.kit.ghosts import Seen
from kvtier.policy import AdmissionPolicy
from kvtier.types import BlockKey


class SecondUsePolicy(AdmissionPolicy):
    """A chunk enters once two requests had it; what only decoding made counts as had by one.

    On DRAM that costs computing a prefix twice before it is kept; below, a chunk is in DRAM meanwhile.
    """

    class Config(Struct, frozen=True, kw_only=True):
        remember: Annotated[int, Meta(ge=1)] = 1_000_000  # keys; about 100 bytes each

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._once = Seen(config.remember)
        self._twice = Seen(config.remember)

    def arrived(self, request: RequestFacts) -> None:
        keys = _keys(request)
        self._twice.add([key for key in keys if key in self._once])
        self._once.add(keys)

    def departed(self, request: RequestFacts) -> None:
        self._once.add(_keys(request))

    def admits(self, key: BlockKey, end_token: int) -> bool:
        return key in self._twice


def _keys(request: RequestFacts) -> Iterable[BlockKey]:
    return [key for group in request.groups for key in group.keys]
