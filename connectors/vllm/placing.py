"""Where a rank's memory belongs: on the node of its device, unless the configuration says otherwise."""

import logging
import os
from collections.abc import Sequence

import torch

from kvtier import topology
from kvtier.config import clamped
from kvtier.memory.arena import Arena
from kvtier.memory.region import free_huge_nbytes, regions_of_others

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


def share_of_free(ranks: int, owner: str) -> int:
    """Return the bytes of free memory that are one rank's, of the `ranks` of all engines on this node.

    They start at the same time. A rank whose arena is visible has its share: what it has yet to take is not free.
    """
    others = regions_of_others(
        owner
    )  # first: what they take meanwhile is missed, never counted twice
    promised = sum(region.nbytes - region.taken for region in others)
    return max(0, topology.free_nbytes() - promised) // max(1, ranks - len(others))


def make_arena(
    wanted: int, slot_nbytes: int, nodes: Sequence[int], owner: str, free_nbytes: int
) -> Arena:
    """Make a rank's arena of `wanted` bytes, or of what of them fits into its share of free memory.

    Explicit huge pages are nobody else's memory and all there already.

    Raises:
        ConfigError: too few chunks would fit.
    """
    if free_huge_nbytes(nodes) >= wanted:
        arena = Arena(wanted // slot_nbytes, slot_nbytes, nodes, owner)
        if arena.huge:
            return arena
        arena.close()
    fitting = clamped(wanted, free_nbytes, slot_nbytes)
    return Arena(fitting // slot_nbytes, slot_nbytes, nodes, owner)


def settle(arena: Arena, nodes: Sequence[int], ranks: int, *, fill: bool) -> None:
    """Say where the arena could not be bound, and begin to fill it in, as `ranks` ranks of this node do at once."""
    if arena.refused:
        logger.warning(
            "the arena is not bound to NUMA node %s: %s", ", ".join(map(str, nodes)), arena.refused
        )
    if fill:
        arena.prefault(max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2 // ranks)))
