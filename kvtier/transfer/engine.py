"""The transfer interface: one rank's device pages <-> its arena slots. Nothing here blocks but `result`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import torch

from kvtier.memory.arena import Arena


class Urgency(StrEnum):
    """Whether somebody waits for a load."""

    DEMAND = "demand"
    PREFETCH = "prefetch"


class ChunkCopy(NamedTuple):
    """One chunk between a slot and the device blocks that hold it."""

    slot: int
    group: int
    blocks: tuple[int | None, ...]
    """Device block per position of the chunk, `blocks_per_chunk` long; None: that piece does not move."""


class Moved(NamedTuple):
    """What a finished transfer did."""

    nbytes: int
    seconds: float  # from submission to the end of the copy
    waited: float = 0.0  # of these, before the first byte moved, where the engine knows it
    worked: float = 0.0  # of the others, on a core; the rest is waiting for one, or for the GIL


class Transfer(ABC):
    """A copy under way: the package's one asynchronous primitive."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the copy is over, well or badly; never blocks."""

    def stop(self) -> None:  # noqa: B027 - optional
        """Start nothing more of it: nobody wants it any more. It ends with what was started."""

    def rest(self, seconds: float) -> None:  # noqa: B027 - a device does not need the caller's core
        """Leave the core and the GIL to the copy, until it is over or `seconds` have passed."""

    @abstractmethod
    def result(self) -> Moved:
        """Wait for the device side of the copy to be over.

        Raises:
            Exception: whatever made the copy fail; the destination is then undefined.
        """


class TransferEngine(ABC):
    """Copies between the device's pages and the arena; called from the worker's main thread only.

    A slot holds its chunk layer-major: for each tensor of the group, one page per block of the chunk.
    Transfers of one direction and urgency end in the order of their submission; a demand may overtake
    prefetches. The caller keeps both ends alive and unwritten until the transfer is done. A transfer comes after
    what the device was given before its submission, or before `launching` where that was called.
    """

    beside = False
    """Whether copies run beside a pass that the caller computes itself, so that a load is best submitted before it."""

    def __init__(
        self,
        arena: Arena,
        pages: Mapping[int, Sequence[torch.Tensor]],
        blocks_per_chunk: int,
    ) -> None:
        """Take per group its tensors, each (num_blocks, page_nbytes) int8, rows possibly strided."""
        self.arena = arena
        self.pages = {group: tuple(tensors) for group, tensors in pages.items()}
        self.blocks_per_chunk = blocks_per_chunk

    @abstractmethod
    def offload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        """Start to copy device blocks into slots; pieces without a block are zeroed."""

    def offload_each(self, transfers: Sequence[Sequence[ChunkCopy]]) -> Iterator[Transfer]:
        """Start several such copies, in order; each ends, fails and is waited for on its own.

        Where one cannot be started, those that were are given before the exception is raised.
        """
        return map(self.offload, transfers)

    @abstractmethod
    def onload(self, copies: Sequence[ChunkCopy], urgency: Urgency = Urgency.DEMAND) -> Transfer:
        """Start to copy slots into device blocks; pieces without a block are left alone."""

    def launching(self) -> None:  # noqa: B027 - there is no order to keep where the caller computes itself
        """Be told that a forward pass is about to be launched.

        Transfers that are submitted until `launched` do not wait for this pass. The caller promises that the
        pass uses no page that they load, and changes no page that they store.
        """

    def launched(self) -> None:  # noqa: B027
        """Order transfers by their submission again."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what runs and release everything; idempotent."""


def chunk_nbytes(tensors: Sequence[torch.Tensor], blocks_per_chunk: int) -> int:
    """Bytes that one chunk of a group with these tensors takes in a slot."""
    return blocks_per_chunk * sum(tensor.shape[1] for tensor in tensors)
