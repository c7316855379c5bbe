"""The ways between device pages and slots. Each starts its work on a stream and returns at once.

batched   the copy engine, run by run: no multiprocessor is used, small runs are slow
kernel    a few multiprocessors read or write the pinned slots themselves
staged    a kernel gathers chunks in a buffer on the device, the copy engine moves the buffer
plain     the same with torch's own kernels: works wherever torch has streams
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.page_map import Addresses, Listed, PageMap, Runs, Work
from kvtier.transfer.streams import COMPUTE, Mark, Streams

STAGE_NBYTES = 32 << 20
"""Bytes on the device of one staging buffer, more where a chunk is larger; there are two per direction."""

CALL_NBYTES = 256 << 20
"""Bytes of one call of a direct way: the device is at work while the rest is planned."""


class Path(StrEnum):
    """The names of the ways, as calibrations keep them."""

    BATCHED = "batched"
    STAGED = "staged"
    KERNEL = "kernel"
    PLAIN = "plain"


class Direction(StrEnum):
    """Which way bytes go."""

    OFFLOAD = "offload"
    ONLOAD = "onload"


class Copier(ABC):
    """Copies by address that run on the current stream. The arrays are read before the call returns."""

    @abstractmethod
    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses, direction: Direction) -> None:
        """Copy with the copy engine; the order within a call is open.

        Raises:
            OSError: the driver refused.
        """

    @abstractmethod
    def kernel(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        """Copy with a few multiprocessors; host addresses must be pinned."""


class Mover(ABC):
    """Starts transfers of one direction one way."""

    @abstractmethod
    def move(self, work: Work, stream: int, after: Mark) -> None:
        """Start it on `stream`, with no access to a page before `after` has passed."""


class Setup(NamedTuple):
    """What every way needs."""

    arena: Arena
    layout: PageMap
    streams: Streams
    asides: Mapping[Direction, int]
    """Per direction a second stream, on which kernels go ahead of what the engine computes."""
    copier: Copier | None
    device: torch.device

    def runs(self, work: Work, direction: Direction) -> Runs:
        """List the runs of a direction."""
        if work.listed:
            return work.listed.runs
        if direction is Direction.OFFLOAD:
            return self.layout.offload_runs(work)
        return self.layout.onload_runs(work)

    def listed(self, work: Work, direction: Direction) -> Listed:
        """Find out all that a way asks of a work."""
        if work.listed:
            return work.listed
        runs = self.runs(work, direction)
        slots = work.slot_addresses(self.arena)[runs.chunk] + runs.offset
        nbytes = self.layout.run_nbytes(work), self.layout.moved_nbytes(work)
        return Listed(runs, slots, *nbytes)


class DirectMover(Mover):
    """Run by run between page and slot, by the copy engine or by the kernel."""

    def __init__(self, site: Setup, direction: Direction, path: Path) -> None:
        assert site.copier is not None
        self._site = site
        self._copier = site.copier
        self._direction = direction
        self._kernel = path is Path.KERNEL

    def move(self, work: Work, stream: int, after: Mark) -> None:
        self._site.streams.after(stream, after)
        nbytes = self._site.layout.chunk_nbytes(work.group)
        for part in work.parts(max(1, CALL_NBYTES // nbytes)):
            self._site.streams.run(stream, self._step(part))

    def _step(self, part: Work) -> "partial[None]":
        runs, slots = self._site.listed(part, self._direction)[:2]
        ends = (slots, runs.device)
        dst, src = ends if self._direction is Direction.OFFLOAD else ends[::-1]
        if self._kernel:
            return partial(self._copier.kernel, dst, src, runs.nbytes)
        return partial(self._copier.copy, dst, src, runs.nbytes, self._direction)


class StagedMover(Mover):
    """Chunks meet in a buffer on the device; two buffers and two streams, so that both halves overlap.

    Raises:
        torch.OutOfMemoryError: the device has no memory for the buffers; they are taken at once, and kept.
    """

    def __init__(self, site: Setup, direction: Direction) -> None:
        assert site.copier is not None
        self._site = site
        self._copier = site.copier
        self._direction = direction
        self._aside = site.asides[direction]
        nbytes = max(STAGE_NBYTES, *map(site.layout.chunk_nbytes, site.layout.planes))
        self._buffers = [
            torch.empty(nbytes, dtype=torch.uint8, device=site.device) for _ in range(2)
        ]
        self._free: list[Mark | None] = [None, None]
        self._turn = 0
        site.streams.mark(COMPUTE).wait()  # whoever had that memory is through with it

    def move(self, work: Work, stream: int, after: Mark) -> None:
        streams, nbytes = self._site.streams, self._site.layout.chunk_nbytes(work.group)
        streams.after(stream, after)
        streams.after(self._aside, after)
        first, second = self._aside, stream
        if self._direction is Direction.ONLOAD:
            first, second = second, first
        try:
            for part in work.parts(max(1, self._buffers[0].numel() // nbytes)):
                self._part(part, first, second)
        finally:  # what was started ends before what `stream` is given next, and before its next mark
            streams.after(stream, streams.mark(self._aside))

    def _part(self, part: Work, first: int, second: int) -> None:
        """Fill the next buffer on one stream and empty it on the other."""
        streams = self._site.streams
        i = self._turn = 1 - self._turn
        free = self._free[i]
        if free is not None:
            streams.after(first, free)
        gather, copy = self._steps(part, self._buffers[i].data_ptr())
        steps = (gather, copy) if self._direction is Direction.OFFLOAD else (copy, gather)
        streams.run(first, steps[0])
        streams.after(second, streams.mark(first))
        streams.run(second, steps[1])
        self._free[i] = streams.mark(second)

    def _steps(self, part: Work, buffer: int) -> tuple["partial[None]", "partial[None]"]:
        site = self._site
        nbytes = site.layout.chunk_nbytes(part.group)
        chunks = (buffer + np.arange(len(part.slots)) * nbytes).astype(np.uint64)
        runs = site.runs(part, self._direction)
        pages, staged, slots = (
            runs.device,
            chunks[runs.chunk] + runs.offset,
            part.slot_addresses(site.arena),
        )
        sizes = np.full(len(slots), nbytes, np.uint64)
        if self._direction is Direction.OFFLOAD:
            return (
                partial(self._copier.kernel, staged, pages, runs.nbytes),
                partial(self._copier.copy, slots, chunks, sizes, self._direction),
            )
        return (
            partial(self._copier.kernel, pages, staged, runs.nbytes),
            partial(self._copier.copy, chunks, slots, sizes, self._direction),
        )
