"""Where a rank's memory belongs: on the node of its device, unless the configuration says otherwise."""

import logging
import os
from collections.abc import Sequence

import torch

from kvtier import topology
from kvtier.memory.arena import Arena
from kvtier.memory.region import taken_by_others

logger = logging.getLogger(__name__)

_MAX_THREADS = 8


def own_node(device: torch.device) -> int | None:
    """Return the NUMA node that the device hangs on; of the CPU the one that this process runs on, if it is one."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found = [getattr(gpu, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
        address = [part for part in found if part is not None]  # an old PyTorch does not tell
        if len(address) < len(found):
            return None
        return topology.node_of_pci("{:04x}:{:02x}:{:02x}.0".format(*address))
    return topology.node_of_cpus(os.sched_getaffinity(0))


def nodes_for(configured: Sequence[int] | None, own: int | None) -> tuple[int, ...]:
    """Choose a rank's nodes: of several that are configured its own, else all of them."""
    if configured and own not in configured:
        return tuple(configured)
    return () if own is None else (own,)


def fits(arena_nbytes: int, lower_nbytes: int, ranks: int, owner: str) -> bool:
    """Whether the free memory is enough for the arena and `lower_nbytes` of memory tiers of every rank here.

    `ranks` counts the ranks of all engines on this node, because they start at the same time. A rank whose arena is
    visible already has taken its memory and is not counted again. If the memory is not enough, nothing is pinned: a
    process that copies slowly is better than one that the kernel kills.
    """
    served = min(ranks - 1, taken_by_others(owner) // arena_nbytes) if arena_nbytes else 0
    return (arena_nbytes + lower_nbytes) * (ranks - served) <= topology.free_nbytes()


def settle(arena: Arena, nodes: Sequence[int], ranks: int, *, fill: bool) -> None:
    """Say where the arena could not be bound, and begin to fill it in, as `ranks` ranks of this node do at once."""
    if arena.refused:
        logger.warning(
            "the arena is not bound to NUMA node %s: %s", ", ".join(map(str, nodes)), arena.refused
        )
    if fill:
        arena.prefault(max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2 // ranks)))
