"""KV events name every block of a chunk, also of a record that outlives its slot; what describes chunks is bounded."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent

from kvtier.connectors.vllm.events import BlockEvents

BLOCKS: list[Any] = [1, 2, 3]


class Told:
    """One engine's events, with `slots` slots in tier 0, which holds nothing."""

    def __init__(self, slots: int = 1) -> None:
        self.described: dict[bytes, object] = {}
        tracker = SimpleNamespace(_pending_event_metadata=self.described)
        base: Any = SimpleNamespace(_events_tracker=tracker)
        self._events = BlockEvents(base)
        self._ranks: Any = SimpleNamespace(slots=slots)
        view = SimpleNamespace(holds=lambda tier, key: key == b"here")
        self._brain: Any = SimpleNamespace(view=view)

    def complete(self, event: KVCacheEvent) -> Any:
        (told,) = self._events.complete([event], self._ranks, self._brain)
        return told

    def stored(self, medium: str) -> None:
        self.complete(BlockStored(list(BLOCKS), None, [7] * 6, 2, None, medium, None, group_idx=0))

    def removed(self, medium: str, hashes: list[Any], group: int = 0) -> list[Any]:
        hashes_of: list[Any] = self.complete(BlockRemoved(hashes, medium, group)).block_hashes
        return hashes_of


def test_a_record_that_goes_takes_all_its_blocks_with_it() -> None:
    told = Told()
    told.stored("CPU")
    told.stored("STORAGE")
    assert told.removed("CPU", list(BLOCKS)) == BLOCKS
    assert told.removed("STORAGE", [3], group=1) == [3]
    assert told.removed("STORAGE", [3]) == BLOCKS
    assert told.removed("STORAGE", [3]) == [3], "nothing is left of it"


def test_what_two_tiers_announced_both_take_back() -> None:
    told = Told()
    told.stored("STORAGE")
    told.stored("STORAGE")
    assert told.removed("STORAGE", [3]) == BLOCKS
    assert told.removed("STORAGE", list(BLOCKS)) == BLOCKS, "no block twice"
    assert told.removed("STORAGE", [3]) == [3]


def test_a_description_that_nothing_ends_is_dropped() -> None:
    told = Told()
    told.described.update({str(n).encode(): n for n in range(5000)})
    told.described[b"here"] = 0
    told.stored("CPU")
    assert list(told.described) == [b"here"]
