"""The device's side of a rank's copies: its pages by KV-cache group, and the engine that moves them."""

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches

from kvtier.memory.arena import Arena
from kvtier.transfer.cpu import CpuTransferEngine
from kvtier.transfer.cuda import stream_engine
from kvtier.transfer.engine import TransferEngine


def group_tensors(caches: CanonicalKVCaches, position: int) -> list[torch.Tensor]:
    """Collect a group's distinct tensors, each cut to its unpadded page."""
    nbytes: dict[int, int] = {}
    for ref in caches.group_data_refs[position]:
        nbytes[ref.tensor_idx] = max(nbytes.get(ref.tensor_idx, 0), ref.page_size_bytes)
    return [caches.tensors[i].tensor[:, :n] for i, n in nbytes.items()]


def transfer_engine(
    arena: Arena, pages: dict[int, list[torch.Tensor]], blocks_per_chunk: int
) -> TransferEngine:
    """Make the engine for where the pages are."""
    if next(iter(pages.values()))[0].device.type == "cpu":
        return CpuTransferEngine(arena, pages, blocks_per_chunk)
    return stream_engine(arena, pages, blocks_per_chunk)
