"""Admit what is faster to read from this tier than to compute."""

from typing import Annotated

from msgspec import Meta, Struct

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policies.kit.ghosts import Seen
from kvtier.policy import AdmissionPolicy
from kvtier.types import BlockKey


class CostAwarePolicy(AdmissionPolicy):
    """A request's whole prefix is weighed: seconds to compute it against seconds to read it from here.

    Both are measured by the brain; before they are, everything enters. A prefix that is too dear stays out
    until a longer request shares it (attention makes long prefixes worth more per byte).
    """

    class Config(Struct, frozen=True, kw_only=True):
        gain: Annotated[float, Meta(ge=0, le=1e6)] = (
            1.0  # computing must cost this many times the reading
        )
        remember: Annotated[int, Meta(ge=1)] = (
            1_000_000  # keys of prefixes that are too dear; about 100 bytes each
        )

    def __init__(self, config: Config, facts: TierFacts) -> None:
        super().__init__(facts)
        self._gain = config.gain
        self._dear = Seen(config.remember)

    def arrived(self, request: RequestFacts) -> None:
        nbytes = sum(
            self.facts.nbytes(group.keys[0]) * len(group.keys)
            for group in request.groups
            if group.keys
        )
        compute_s = self.facts.prefill_s(0, request.tokens)
        dear = compute_s < self._gain * self.facts.read_s(nbytes)
        for group in request.groups:
            if dear:
                self._dear.add(group.keys)
            else:
                self._dear.discard(group.keys)

    def departed(self, request: RequestFacts) -> None:
        self.arrived(request)

    def admits(self, key: BlockKey, end_token: int) -> bool:
        return key not in self._dear
