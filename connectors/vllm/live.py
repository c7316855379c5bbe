"""What EngineCore's half remembers of each live request."""

from dataclasses import dataclass, field
from enum import Enum, auto

from kvtier.brain import Why
from kvtier.connectors.vllm.permissions import Permission
from kvtier.types import BlockKey


class Fetch(Enum):
    """What became of a hit that vLLM's lookups found."""

    PINNED = auto()  # all of it is in tier 0 and stays there for this request
    READING = auto()  # ask again later
    SHORTER = auto()  # look up again: what is below tier 0 does not come


@dataclass(slots=True)
class LiveRequest:
    """All that is known here of one live request; the brain has what it decides by."""

    may: Permission
    told: list[int]  # keys that the brain knows, of each group
    below: dict[BlockKey, int] = field(default_factory=dict)  # of its hit, by tier: from below 0
    loads: list[tuple[BlockKey, int]] = field(default_factory=list)  # of its hit, in which there is
    # something from below: the chunks of the prefix that are copied to the device, and their ends
    reading: bool = False  # reads were ordered for it, and were not all there when vLLM asked last
    loaded: bool = False  # since it started from nothing: who asks again then has lost that
    elsewhere: bool = False  # another connector fetches its KV from the engine that computed it
    computed: int = 0  # tokens that the device's own cache had when vLLM asked last
    scheduled: bool = False  # since it started from nothing; then it was found why its hit ends
    away: bool = False  # preempted and not scheduled since: its blocks are others', and vLLM still names them

    @property
    def no_store(self) -> Why | None:
        """Why nothing of it is stored now."""
        return Why.VANISHED if self.away else self.may.no_store

    def preempt(self) -> None:
        """Start again from nothing."""
        self.scheduled = self.loaded = False
        self.away = True
