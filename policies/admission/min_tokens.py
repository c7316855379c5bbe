"""Admit prefixes of some length: a short one is computed faster than it is kept, found and read."""

from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policies.kit.ghosts import Seen
from kvtier.policy import AdmissionPolicy
from kvtier.types import BlockKey


class MinTokensPolicy(AdmissionPolicy):
    """A chunk enters if some request with it in its prefix was long enough, however deep the chunk stands.

    By its own depth alone the heads of long prefixes would stay out, and their tails be of no use.
    """

    class Config(Struct, frozen=True, kw_only=True):
        tokens: Annotated[int, Meta(ge=0)] = 1024
        remember: Annotated[int, Meta(ge=1)] = (
            1_000_000  # keys of long requests; about 100 bytes each
        )

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._tokens = config.tokens
        self._long = Seen(config.remember)

    def arrived(self, request: RequestFacts) -> None:
        if request.tokens >= self._tokens:
            for group in request.groups:
                self._long.add(group.keys)

    def departed(self, request: RequestFacts) -> None:
        self.arrived(request)

    def admits(self, key: BlockKey, end_token: int) -> bool:
        return end_token >= self._tokens or key in self._long
