"""vLLM's block lists are paired with slots only where it is sure which blocks belong to which chunk."""

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.worker import KVTierWorker


def pair(
    blocks: list[int], first: int, slots: tuple[int, ...]
) -> tuple[list[tuple[int, tuple[int | None, ...]]], set[int]]:
    """Pair the blocks of one group of two blocks per chunk with slots, without an engine."""
    worker = KVTierWorker.__new__(KVTierWorker)
    worker.blocks_per_chunk = 2
    worker._groups = [0]
    device = GPULoadStoreSpec(blocks, group_sizes=[len(blocks)], block_indices=[first])
    copies, torn = worker._copies(SlotSpec(1, (slots,)), device)
    return [(copy.slot, copy.blocks) for copy in copies], torn


def test_whole_chunks() -> None:
    assert pair([10, 11, 12, 13], 4, (7, 3)) == ([(7, (10, 11)), (3, (12, 13))], set())


def test_a_load_may_begin_and_end_inside_a_chunk() -> None:
    copies, _ = pair([11, 12, 13, 14], 5, (7, 3, 5))
    assert copies == [(7, (None, 11)), (3, (12, 13)), (5, (14, None))]


def test_a_store_that_lacks_a_block_somewhere_is_torn_as_a_whole() -> None:
    _, torn = pair([10, 11, 13, 14, 15], 0, (7, 3, 5))  # one was lost, nobody says which
    assert torn == {0, 1, 2}


def test_more_blocks_than_chunks_is_an_error() -> None:
    with pytest.raises(ValueError, match="blocks"):
        pair([10, 11, 12], 0, (7,))
