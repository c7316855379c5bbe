"""Which bytes a transfer moves: from chunks to runs of addresses. Pure: no device, no stream.

A run is what lies in one piece at both ends. Pages of blocks that are neighbours on the device and in the
slot are one run, so that costs are counted in runs, not in pages.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.engine import ChunkCopy

Addresses = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
NO_BLOCK = -1


class PageRun(NamedTuple):
    """One tensor of a group: its pages on the device."""

    address: int
    stride: int  # bytes from a page to the next
    nbytes: int  # of a page


class Runs(NamedTuple):
    """What to copy: per run its device address, the chunk of the work, the offset in its slot, and its bytes."""

    device: Addresses
    chunk: Numbers
    offset: Addresses
    nbytes: Addresses


class Listed(NamedTuple):
    """What is known of a work before it starts."""

    runs: Runs
    slots: Addresses  # per run its address in the slot
    run_nbytes: int  # of an average run
    moved_nbytes: int


class Work(NamedTuple):
    """Chunks of one group, in the order of submission."""

    group: int
    slots: Numbers  # (n,)
    blocks: Numbers  # (n, blocks_per_chunk), NO_BLOCK where nothing moves
    listed: Listed | None = None  # for the direction that it goes

    def slot_addresses(self, arena: Arena) -> Addresses:
        """Return the address of each chunk's slot."""
        return (arena.address + self.slots * arena.slot_nbytes).astype(np.uint64)

    def parts(self, chunks: int) -> Iterator["Work"]:
        """Cut it into parts of at most so many chunks."""
        if len(self.slots) <= chunks:
            yield self
            return
        for i in range(0, len(self.slots), chunks):
            yield Work(self.group, self.slots[i : i + chunks], self.blocks[i : i + chunks])


def works(copies: Sequence[ChunkCopy]) -> list[Work]:
    """Sort copies by group; the order within each stays."""
    by_group: dict[int, list[ChunkCopy]] = {}
    for copy in copies:
        by_group.setdefault(copy.group, []).append(copy)
    return [_work(group, members) for group, members in by_group.items()]


def cut(nbytes: Addresses, limit: int) -> tuple[Numbers, Addresses, Addresses]:
    """Cut runs into pieces of at most `limit` bytes: per piece its run, its offset there, and its bytes."""
    counts = np.maximum(1, -(-nbytes.astype(np.int64) // limit))
    run = np.repeat(np.arange(len(nbytes)), counts)
    nth = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = (nth * limit).astype(np.uint64)
    return run, offset, np.minimum(np.uint64(limit), nbytes[run] - offset)


class PageMap:
    """Where the pages of each group are, on the device and in a slot.

    Pieces without a block come from `zeros`, an address on the device with as many zeroes as the largest page.
    """

    def __init__(
        self, planes: Mapping[int, Sequence[PageRun]], blocks_per_chunk: int, zeros: int
    ) -> None:
        self.planes = {group: tuple(rows) for group, rows in planes.items()}
        self.blocks_per_chunk = blocks_per_chunk
        self._zeros = np.uint64(zeros)
        self._page_nbytes = {g: sum(row.nbytes for row in rows) for g, rows in self.planes.items()}

    @classmethod
    def of(
        cls, pages: Mapping[int, Sequence[torch.Tensor]], blocks_per_chunk: int, zeros: int
    ) -> "PageMap":
        """Read it off the tensors that an engine is given."""
        planes = {g: [_plane(tensor) for tensor in tensors] for g, tensors in pages.items()}
        return cls(planes, blocks_per_chunk, zeros)

    def chunk_nbytes(self, group: int) -> int:
        """Bytes of a chunk in its slot."""
        return self.blocks_per_chunk * self._page_nbytes[group]

    def page_nbytes(self, group: int) -> int:
        """Bytes of a block, in all tensors."""
        return self._page_nbytes[group]

    def chunk_pages(self, group: int) -> int:
        """Pages of a chunk, in all tensors: the most runs that it can have."""
        return self.blocks_per_chunk * len(self.planes[group])

    def moved_nbytes(self, work: Work) -> int:
        """Bytes of the pieces that have a block."""
        if work.listed:
            return work.listed.moved_nbytes
        return int(np.count_nonzero(work.blocks != NO_BLOCK)) * self._page_nbytes[work.group]

    def run_nbytes(self, work: Work) -> int:
        """Bytes of an average run: what the speed of a path depends on."""
        if work.listed:
            return work.listed.run_nbytes
        planes = self.planes[work.group]
        pages = int(np.count_nonzero(work.blocks != NO_BLOCK))
        joins = int(np.count_nonzero(_neighbours(work.blocks)))
        dense = sum(plane.stride == plane.nbytes for plane in planes)
        return self.moved_nbytes(work) // max(1, pages * len(planes) - joins * dense)

    def offload_runs(self, work: Work) -> Runs:
        """List the runs of a copy into slots: every byte of every chunk, zeroes where there is no block."""
        return self._runs(work, keep_empty=True)

    def onload_runs(self, work: Work) -> Runs:
        """List the runs of a copy onto the device: only pieces that have a block."""
        return self._runs(work, keep_empty=False)

    def _runs(self, work: Work, *, keep_empty: bool) -> Runs:
        address, stride, nbytes = np.array(self.planes[work.group], np.uint64).T[:, None, :, None]
        chunks, per_chunk = work.blocks.shape
        there = (work.blocks != NO_BLOCK)[:, None, :]
        shape = (chunks, nbytes.shape[1], per_chunk)
        blocks = np.where(there, work.blocks[:, None, :], 0).astype(np.uint64)
        device = np.where(there, address + blocks * stride, self._zeros)
        starts = np.cumsum(nbytes, axis=1, dtype=np.uint64) - nbytes
        offset = starts * np.uint64(per_chunk) + np.arange(per_chunk, dtype=np.uint64) * nbytes
        joins = np.zeros(shape, bool)
        joins[:, :, 1:] = _neighbours(work.blocks)[:, None, :] & (stride == nbytes)
        kept = np.broadcast_to(there | keep_empty, shape).ravel()
        first = np.flatnonzero(~joins.ravel()[kept])
        sizes = np.broadcast_to(nbytes, shape).ravel()[kept]
        chunk = np.broadcast_to(np.arange(chunks)[:, None, None], shape).ravel()[kept]
        return Runs(
            device.ravel()[kept][first],
            chunk[first],
            np.broadcast_to(offset, shape).ravel()[kept][first],
            np.add.reduceat(sizes, first) if len(first) else sizes[:0],
        )


def _neighbours(blocks: Numbers) -> npt.NDArray[np.bool]:
    """Whether each block but the first of a chunk follows the one before it on the device."""
    before, after = blocks[:, :-1], blocks[:, 1:]
    joined: npt.NDArray[np.bool] = (before != NO_BLOCK) & (after == before + 1)
    return joined


def _work(group: int, copies: Sequence[ChunkCopy]) -> Work:
    rows = [[NO_BLOCK if b is None else b for b in copy.blocks] for copy in copies]
    slots = np.array([copy.slot for copy in copies], np.int64)
    return Work(group, slots, np.array(rows, np.int64))


def _plane(tensor: torch.Tensor) -> PageRun:
    return PageRun(tensor.data_ptr(), tensor.stride(0) * tensor.element_size(), tensor.shape[1])
