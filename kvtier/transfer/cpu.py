"""Copies on the CPU backend: memmove in a few threads, each releasing the GIL."""

import ctypes
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch

from kvtier.arena import Arena
from kvtier.transfer.engine import ChunkCopy, Moved, Transfer, TransferEngine


class _Plane(NamedTuple):
    """One tensor of a group: where its pages are on the device and where they go in a slot."""

    address: int
    stride: int
    nbytes: int
    offset: int


class CpuTransfer(Transfer):
    """A transfer that a thread of the pool carries out."""

    def __init__(self, future: "Future[Moved]") -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Moved:
        return self._future.result()


class CpuTransferEngine(TransferEngine):
    """One thread per direction, so that transfers of a direction end in order.

    The queues are bounded by the arena: a slot is in at most one transfer at a time.
    """

    def __init__(
        self,
        arena: Arena,
        pages: Mapping[int, Sequence[torch.Tensor]],
        blocks_per_chunk: int,
    ) -> None:
        super().__init__(arena, pages, blocks_per_chunk)
        self._planes = {g: _planes(tensors, blocks_per_chunk) for g, tensors in self.pages.items()}
        self._offloads = ThreadPoolExecutor(1, "kvtier-offload")
        self._onloads = ThreadPoolExecutor(1, "kvtier-onload")

    def offload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        work = partial(self._run, self._offload_chunk, tuple(copies), time.monotonic())
        return CpuTransfer(self._offloads.submit(work))

    def onload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        work = partial(self._run, self._onload_chunk, tuple(copies), time.monotonic())
        return CpuTransfer(self._onloads.submit(work))

    def close(self) -> None:
        self._offloads.shutdown()
        self._onloads.shutdown()

    def _run(self, copy, copies: tuple[ChunkCopy, ...], started: float) -> Moved:  # type: ignore[no-untyped-def]  # bound method
        return Moved(sum(map(copy, copies)), time.monotonic() - started)

    def _offload_chunk(self, chunk: ChunkCopy) -> int:
        slot = self.arena.address + chunk.slot * self.arena.slot_nbytes
        moved = 0
        for plane in self._planes[chunk.group]:
            for i, block in enumerate(chunk.blocks):
                piece = slot + plane.offset + i * plane.nbytes
                if block is None:
                    ctypes.memset(piece, 0, plane.nbytes)
                else:
                    ctypes.memmove(piece, plane.address + block * plane.stride, plane.nbytes)
                    moved += plane.nbytes
        return moved

    def _onload_chunk(self, chunk: ChunkCopy) -> int:
        slot = self.arena.address + chunk.slot * self.arena.slot_nbytes
        moved = 0
        for plane in self._planes[chunk.group]:
            for i, block in enumerate(chunk.blocks):
                if block is not None:
                    piece = slot + plane.offset + i * plane.nbytes
                    ctypes.memmove(plane.address + block * plane.stride, piece, plane.nbytes)
                    moved += plane.nbytes
        return moved


def _planes(tensors: Sequence[torch.Tensor], blocks_per_chunk: int) -> tuple[_Plane, ...]:
    planes, offset = [], 0
    for tensor in tensors:
        nbytes = tensor.shape[1]
        stride = tensor.stride(0) * tensor.element_size()
        planes.append(_Plane(tensor.data_ptr(), stride, nbytes, offset))
        offset += nbytes * blocks_per_chunk
    return tuple(planes)
