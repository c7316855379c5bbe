"""The engine for devices with streams: one stream per direction, several ways, no wait on the caller's thread."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path as FilePath

import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.calibration import Calibration, calibrate, measure
from kvtier.transfer.engine import ChunkCopy, Transfer, TransferEngine, Urgency
from kvtier.transfer.hardware import Hardware
from kvtier.transfer.line import Line, Start, inline
from kvtier.transfer.page_map import PageMap, Work
from kvtier.transfer.paths import Direction, DirectMover, Mover, Path, Setup, StagedMover
from kvtier.transfer.pinning import Pinning
from kvtier.transfer.plain import PlainMover
from kvtier.transfer.streams import COMPUTE, Mark

logger = logging.getLogger(__name__)

_SIZES = 1024  # of runs, whose way is remembered

Pages = Mapping[int, Sequence[torch.Tensor]]


class StreamTransferEngine(TransferEngine):
    """Takes the fastest way for each transfer. An arena that is not pinned is copied by a thread per direction:
    the device's library waits inside such copies, and the caller must not.
    """

    def __init__(
        self,
        arena: Arena,
        pages: Pages,
        blocks_per_chunk: int,
        hardware: Hardware,
        *,
        paths: Sequence[Path] = tuple(Path),
        cache: FilePath | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(arena, pages, blocks_per_chunk)
        self._streams = hardware.streams
        self._before: Mark | None = None  # a forward pass that is being launched
        self._closing = ExitStack()
        self._pinning = Pinning(arena, hardware.registrar)
        self._closing.callback(self._pinning.close)
        largest = max(t.shape[1] for tensors in self.pages.values() for t in tensors)
        self._zeros = torch.zeros(largest, dtype=torch.int8, device=hardware.device)
        layout = PageMap.of(self.pages, blocks_per_chunk, self._zeros.data_ptr())
        asides = {direction: hardware.streams.open(urgent=True) for direction in Direction}
        site = Setup(arena, layout, hardware.streams, asides, hardware.copier, hardware.device)
        self.paths = tuple(path for path in hardware.paths(self._pinning.pinned) if path in paths)
        if not self.paths:
            raise ValueError(f"none of {', '.join(paths)} works here: {hardware.name}")
        self.calibration = self._calibrate(site, hardware.name, cache)
        self._lines = {
            direction: Line(
                hardware.streams,
                layout,
                self._chooser(layout, self._movers(site, self.pages, direction), direction),
                partial(site.listed, direction=direction),
                self._start(hardware, direction),
                clock,
            )
            for direction in Direction
        }

    def offload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        return self._lines[Direction.OFFLOAD].submit(copies, Urgency.DEMAND, self._after())

    def offload_each(self, transfers: Sequence[Sequence[ChunkCopy]]) -> Iterator[Transfer]:
        line = self._lines[Direction.OFFLOAD]
        return iter(line.submit_each(transfers, Urgency.DEMAND, self._after()))

    def onload(self, copies: Sequence[ChunkCopy], urgency: Urgency = Urgency.DEMAND) -> Transfer:
        return self._lines[Direction.ONLOAD].submit(copies, urgency, self._after())

    def launching(self) -> None:
        self._before = self._streams.mark(COMPUTE)

    def launched(self) -> None:
        self._before = None

    def close(self) -> None:
        for line in self._lines.values():
            line.drain()
        self._lines.clear()  # the buffers on the device go with the last reference, not when cycles are collected
        self._closing.close()

    def _after(self) -> Mark:
        return self._before or self._streams.mark(COMPUTE)

    def _start(self, hardware: Hardware, direction: Direction) -> Start:
        if self._pinning.pinned:
            return inline
        pool = ThreadPoolExecutor(1, f"kvtier-{direction}", initializer=hardware.enter_thread)
        self._closing.callback(pool.shutdown)
        return pool.submit

    def _calibrate(self, site: Setup, name: str, cache: FilePath | None) -> Calibration | None:
        if len(self.paths) == 1:
            return None
        return calibrate(name, cache, self.paths, partial(measure, site, self._movers))

    def _movers(self, site: Setup, pages: Pages, direction: Direction) -> dict[Path, Mover]:
        return dict(self._each_mover(site, pages, direction))

    def _each_mover(
        self, site: Setup, pages: Pages, direction: Direction
    ) -> Iterator[tuple[Path, Mover]]:
        for path in self.paths:
            if path is Path.PLAIN:
                yield path, PlainMover(site, pages, direction)
            elif path is not Path.STAGED:
                yield path, DirectMover(site, direction, path)
            elif (staged := _staged(site, direction)) is not None:
                yield path, staged

    def _chooser(
        self, layout: PageMap, movers: Mapping[Path, Mover], direction: Direction
    ) -> Callable[[Work], Mover]:
        """Return what gives each work its way: it looks once at each size of run."""
        calibration = self.calibration
        if calibration is None:
            return lambda work: movers[self.paths[0]]
        best = lru_cache(_SIZES)(lambda nbytes: movers[calibration.best(direction, nbytes, movers)])
        return lambda work: best(layout.run_nbytes(work))


def _staged(site: Setup, direction: Direction) -> StagedMover | None:
    """Take the buffers, if the device has the memory: the KV cache of an engine leaves it little."""
    try:
        return StagedMover(site, direction)
    except torch.OutOfMemoryError as exc:
        logger.warning("%s: the device has no memory for staging: %s", direction, exc)
        return None
