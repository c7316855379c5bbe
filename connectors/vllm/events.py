"""KV events of our chunks as routers need them: every block of a chunk, when it comes and when it goes.

vLLM describes a chunk's blocks while tier 0 holds it. Of a record that outlives its slot it would name the last block only.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent

from kvtier.brain import TieredCache
from kvtier.types import TIER0, BlockKey

if TYPE_CHECKING:
    from vllm.distributed.kv_events import ExternalBlockHash
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        OffloadingConnectorScheduler,
    )

    from kvtier.connectors.vllm.ranks import Ranks

_SPARE = 4096  # descriptions beyond the chunks of tier 0, twice, before one looks which are needed


class _Chunk(NamedTuple):
    """A chunk below tier 0: its blocks but the last, and how many tiers announced it."""

    earlier: "tuple[ExternalBlockHash, ...]"
    tiers: int


class BlockEvents:
    """Completes removals from below tier 0. It remembers the hashes of chunks that are announced there, and no tokens."""

    def __init__(self, base: "OffloadingConnectorScheduler") -> None:
        self._base = base
        self._below: dict[tuple[int | None, ExternalBlockHash], _Chunk] = {}

    def complete(
        self, events: list[KVCacheEvent], ranks: "Ranks", brain: TieredCache
    ) -> list[KVCacheEvent]:
        """Add to what vLLM publishes in this step what it left out."""
        self._prune(ranks.slots, brain.view.holds)
        for event in events:
            if isinstance(event, BlockStored) and event.medium != "CPU":
                self._stored(event)
            elif isinstance(event, BlockRemoved) and event.medium != "CPU":
                event.block_hashes = list(self._removed(event))
        return events

    def _prune(self, slots: int, holds: Callable[[int, BlockKey], bool]) -> None:
        """Drop vLLM's descriptions of chunks that are not in tier 0: a lookup makes one, and nothing ends it."""
        described = self._base._events_tracker._pending_event_metadata
        if len(described) > 2 * slots + _SPARE:
            for key in [key for key in described if not holds(TIER0, BlockKey(key))]:
                del described[key]

    def _stored(self, event: BlockStored) -> None:
        *earlier, last = event.block_hashes
        if earlier:
            known = self._below.get((event.group_idx, last))
            tiers = 1 + (known.tiers if known else 0)
            self._below[event.group_idx, last] = _Chunk(tuple(earlier), tiers)

    def _removed(self, event: BlockRemoved) -> "Iterable[ExternalBlockHash]":
        named = set(event.block_hashes)
        for block in event.block_hashes:
            if chunk := self._below.pop((event.group_idx, block), None):
                if chunk.tiers > 1:
                    self._below[event.group_idx, block] = chunk._replace(tiers=chunk.tiers - 1)
                yield from (each for each in chunk.earlier if each not in named)
            yield block
