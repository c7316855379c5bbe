"""The brain as tests and tools look at it: everything is shown, nothing can be changed through it."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from kvtier.brain.demotion import Demotion
from kvtier.brain.index import ChunkState
from kvtier.brain.misses import missed
from kvtier.brain.plans import TierSpec
from kvtier.brain.reading import Reading
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.brain.why import Why
from kvtier.policy import EvictionPolicy
from kvtier.types import NO_SLOT, BlockKey, GroupSpec


class CacheView:
    """Looks at one brain as it is at each call. Tiers are numbered from 0, the arena."""

    def __init__(self, state: State, demotion: Demotion) -> None:
        self._state = state
        self._demotion = demotion

    @property
    def groups(self) -> tuple[GroupSpec, ...]:
        """The KV-cache groups."""
        return self._state.groups.specs

    @property
    def requests(self) -> Mapping[str, Request]:
        """What is known of each request; not to be changed."""
        return MappingProxyType(self._state.requests)

    @property
    def pins(self) -> Mapping[BlockKey, int]:
        """The pinned chunks, and how often each is."""
        return MappingProxyType(self._state.residency.pins)

    @property
    def awaited(self) -> Mapping[BlockKey, int]:
        """The chunks that are spared for waiting requests."""
        return MappingProxyType(self._state.victims.awaited)

    @property
    def leaving(self) -> int:
        """How many chunks are being written down before their slots are free."""
        return self._state.residency.leaving

    @property
    def unlinked(self) -> int:
        """How many chunks a scan found whose place no request has shown yet."""
        return self._state.residency.index.unlinked

    def keys(self, tier: int | None = None) -> Iterator[BlockKey]:
        """Walk the keys of every chunk, or of those that a tier holds."""
        index = self._state.residency.index
        for key, row in index.rows.items():
            if tier is None or index.flags[row] >> tier & 1:
                yield key

    def holds(self, tier: int, key: BlockKey) -> bool:
        """Whether a tier holds a chunk, readable on every rank."""
        return bool(self._state.residency.index.flags_of(key) >> tier & 1)

    def state(self, key: BlockKey) -> ChunkState:
        """Return the state of a chunk."""
        index = self._state.residency.index
        row = index.rows.get(key)
        return ChunkState.ABSENT if row is None else index.state(row)

    def slot(self, key: BlockKey) -> int:
        """Return the slot of a chunk, NO_SLOT if it has none."""
        index = self._state.residency.index
        row = index.rows.get(key)
        return NO_SLOT if row is None else index.slots[row]

    def parent(self, key: BlockKey) -> BlockKey | None:
        """Return the chunk before a chunk, None at the start or where it is not known."""
        index = self._state.residency.index
        row = index.rows.get(key)
        return None if row is None else index.parents[row]

    def end(self, key: BlockKey) -> int:
        """Return the token at which a chunk ends, 0 where it is not known."""
        return self._state.residency.index.end(key)

    def score(self, key: BlockKey) -> float | None:
        """Return the score of a chunk, None if it has none."""
        return self._state.residency.index.score(key)

    def policy(self, tier: int) -> EvictionPolicy:
        """Return the policy that chooses a tier's victims; nothing is to be told to it."""
        return self._state.policies.eviction[tier]

    def tier(self, tier: int) -> TierSpec:
        """Return what is known of a lower tier."""
        return self._state.lowers[tier - 1].spec

    def serving(self, tier: int) -> bool:
        """Whether a lower tier may be read and written now."""
        return self._state.lowers[tier - 1].serving

    @property
    def knows_speed(self) -> bool:
        """Whether reads are weighed against computing."""
        return self._state.costs.known

    def coming(self, request: str) -> Mapping[BlockKey, int]:
        """Return the chunks that a request waits for, each with the tier that it is read from."""
        known = self._state.requests.get(request)
        left = known.reading.left if known and isinstance(known.reading, Reading) else {}
        return {key: lower.tier for key, lower in left.items()}

    @property
    def pace(self) -> float:
        """Return the seconds in which the engine computes a token of a prompt, 0 while it is not known."""
        return self._state.costs.prefill.steady()

    def missed(self, request: str, start: int, end: int) -> Mapping[Why, int]:
        """Give the tokens [start, end) of a prompt, behind its hit, the reasons for which they are computed."""
        known = self._state.requests.get(request)
        return missed(self._state, known, start, end) if known else {Why.UNASKED: end - start}

    def pending(self) -> list[str]:
        """Name, in words, all that is under way or waits to be ordered, and each tier that does not serve."""
        found = [operation.op.kind.name for operation in self._state.operations.all()]
        found += ["a copy"] * len(self._state.copies)
        for lower in self._state.lowers:
            if not lower.serving and not lower.detached:
                found.append(f"{lower.spec.name} is {lower.phase}, {lower.breaker.state}")
            if lower.space and lower.space.listing:
                found.append("a scan")
            if lower.space:
                found += ["a removal"] * lower.space.doomed
            found += ["a write"] * self._demotion.queued(lower)
        return found
