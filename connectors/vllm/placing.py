"""Where a rank's memory belongs: on the node of its device, unless the configuration says otherwise."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Protocol

import torch

from kvtier import topology
from kvtier.memory.arena import Arena
from kvtier.memory.region import taken_by_others

logger = logging.getLogger(__name__)

_MAX_THREADS = 8
_ENGINE = re.compile(r"_dp(\d+)$")


class DataParallel(Protocol):
    """What vLLM's configurations of parallelism have in common."""

    @property
    def data_parallel_index(self) -> int:
        """Which of them."""

    @property
    def data_parallel_size(self) -> int:
        """How many."""


def engine_of(engine_id: str | None, parallel: DataParallel) -> int | None:
    """Say which of several data-parallel engines this is; None: the only one.

    vLLM turns each engine of a dense model into the only one of its own, in all but its name.
    """
    if named := _ENGINE.search(engine_id or ""):
        return int(named[1])
    return parallel.data_parallel_index if parallel.data_parallel_size > 1 else None


def engines_here(configured: int, engine: int | None, ranks: int) -> int:
    """Count the engines of this node; where vLLM forgot how many were configured, as many as its GPUs make."""
    if engine is None or configured > 1:
        return max(1, configured)
    gpus = len(topology.ask_nvml().cards) or len(topology.gpus())
    return max(1, gpus // ranks)


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


def owner_of(engine_id: str | None) -> str:
    """Name what all ranks of all data-parallel engines of one server belong to."""
    return _ENGINE.sub("", engine_id or "")


def fits(arena_nbytes: int, lower_nbytes: int, ranks: int, owner: str) -> bool:
    """Whether every rank of this node can take its arena and `lower_nbytes` of memory tiers now.

    All of them take it at once, but for those who have it already, as far as their arenas show it. A process
    that is killed for memory is worse than one that copies slowly.
    """
    served = min(ranks - 1, taken_by_others(owner) // arena_nbytes) if arena_nbytes else 0
    return (arena_nbytes + lower_nbytes) * (ranks - served) <= topology.free_nbytes()


def settle(arena: Arena, nodes: Sequence[int], ranks: int, *, fill: bool) -> None:
    """Say where the arena could not be bound, and begin to fill it in, `ranks` of this node at once."""
    if arena.refused:
        logger.warning(
            "the arena is not bound to NUMA node %s: %s", ", ".join(map(str, nodes)), arena.refused
        )
    if fill:
        arena.prefault(max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2 // ranks)))
