"""What one rank may take of a configuration: a capacity is of one engine on one node, for all ranks that it has there."""

import msgspec

from kvtier import topology
from kvtier.config.structs import Config, MediumConfig, TierConfig
from kvtier.errors import ConfigError
from kvtier.registry import kept_once
from kvtier.units import format_nbytes

_LEAST_SLOTS = 16  # fewer hold nothing that is asked for again
_RESERVE = 4 << 30


def share(capacity: int, local_ranks: int) -> int:
    """Return what one of an engine's `local_ranks` ranks on a node may take of a capacity there."""
    return capacity // local_ranks


def sharers(tier: TierConfig, index: int, local_ranks: int, *, copies: bool) -> int:
    """Return how many ranks share the capacity of the tier at `index`.

    Where all have the same KV (`copies`), one keeps the records of a tier that can be kept once, and has all of it.
    """
    return 1 if copies and index and kept_once(tier.kind) else local_ranks


def of_rank(config: Config, local_ranks: int, *, copies: bool = False) -> Config:
    """Return the configuration as one rank has it: of every capacity, and of what a lower tier can read, its share.

    `copies` says that all ranks have the same KV. DRAM that has no capacity gets none here: see `dram_nbytes`.
    """
    tiers = (
        msgspec.structs.replace(
            tier,
            capacity=_capacity(tier, sharers(tier, index, local_ranks, copies=copies)),
            medium=_medium(tier, local_ranks) if index else tier.medium,
        )
        for index, tier in enumerate(config.tiers)
    )
    return msgspec.structs.replace(config, tiers=tuple(tiers))


def dram_nbytes(config: Config, local_ranks: int, engines: int = 1) -> int:
    """Return one rank's DRAM, where every rank of `engines` engines like this one takes as much on the node."""
    capacity = config.tiers[0].capacity
    if capacity is None:
        return default_dram_nbytes(local_ranks * engines)
    return share(capacity, local_ranks)


def default_dram_nbytes(ranks: int) -> int:
    """Return one rank's DRAM where no capacity is given: its share of a quarter of the node's free memory."""
    return share(topology.free_nbytes() // 4, ranks)


def room(free_nbytes: int) -> int:
    """Return what of free memory DRAM may take: the engine grows beside it, and so does the I/O process."""
    return free_nbytes - min(free_nbytes // 8, _RESERVE)


def clamped(wanted: int, free_nbytes: int, slot_nbytes: int) -> int:
    """Cut the bytes of DRAM that are wanted down to the room in free memory, whole slots.

    Raises:
        ConfigError: the room is too small to be of use. The alternative is that the kernel ends the engine, when the
            tier fills.
    """
    slots = room(free_nbytes) // slot_nbytes
    if wanted // slot_nbytes <= slots:
        return wanted
    if slots < _LEAST_SLOTS:
        raise ConfigError(
            f"tiers[0].capacity: {format_nbytes(wanted)}, and {format_nbytes(free_nbytes)} of memory are free for "
            f"it: that is no room for {_LEAST_SLOTS} chunks of {format_nbytes(slot_nbytes)}; end what uses the "
            "memory, or raise the container's limit"
        )
    return slots * slot_nbytes


def _capacity(tier: TierConfig, sharers: int) -> int | None:
    return None if tier.capacity is None else share(tier.capacity, sharers)


def _medium(tier: TierConfig, local_ranks: int) -> MediumConfig | None:
    if tier.medium is None:
        return None
    return msgspec.structs.replace(tier.medium, read=tier.medium.read / local_ranks)
