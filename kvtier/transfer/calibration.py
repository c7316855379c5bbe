"""How fast each way is at each size of run, measured at the start and kept per device."""

import logging
import math
import re
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from pathlib import Path as FilePath

import msgspec
import numpy as np
import torch

from kvtier.replacement import replacement
from kvtier.transfer.page_map import PageMap, PageRun, Work
from kvtier.transfer.paths import Direction, Mover, Path, Setup
from kvtier.transfer.streams import COMPUTE

logger = logging.getLogger(__name__)

SIZES = (4 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10)
NBYTES = 128 << 20
"""Bytes of one measured copy: of more parts than the staging buffers hold, so that their overlap is measured too.
Twice as much is taken on the device while it is measured."""
_REPEATS = 3
_AS_GOOD = 0.95
_BY_COST = (Path.BATCHED, Path.STAGED, Path.KERNEL, Path.PLAIN)
"""What takes least of the multiprocessors first."""


MakeMovers = Callable[
    [Setup, Mapping[int, Sequence[torch.Tensor]], Direction], Mapping[Path, Mover]
]


class Rate(msgspec.Struct, frozen=True):
    """One measurement."""

    direction: Direction
    path: Path
    run_nbytes: int
    bytes_per_s: float


class Calibration(msgspec.Struct, frozen=True):
    """What was measured, on which device with which software."""

    device: str
    rates: tuple[Rate, ...]

    def speed(self, direction: Direction, path: Path, run_nbytes: int) -> float:
        """Interpolate bytes per second between the measured sizes, on a logarithmic scale; 0.0: not measured."""
        points = sorted(
            (math.log2(rate.run_nbytes), rate.bytes_per_s)
            for rate in self.rates
            if rate.direction == direction and rate.path == path
        )
        if not points:
            return 0.0
        sizes, speeds = zip(*points, strict=True)
        return float(np.interp(math.log2(max(1, run_nbytes)), sizes, speeds))

    def best(self, direction: Direction, run_nbytes: int, paths: Collection[Path]) -> Path:
        """Choose the way that takes least of the multiprocessors among those within 5 % of the fastest."""
        speeds = {path: self.speed(direction, path, run_nbytes) for path in paths}
        enough = _AS_GOOD * max(speeds.values())
        return next(path for path in _BY_COST if path in speeds and speeds[path] >= enough)


def user_folder() -> FilePath | None:
    """Where calibrations are kept; None: this user has no home."""
    try:
        return FilePath.home() / ".cache" / "kvtier"
    except RuntimeError:
        return None


def calibrate(
    device: str,
    folder: FilePath | None,
    paths: Collection[Path],
    measure: Callable[[], tuple[Rate, ...]],
) -> Calibration:
    """Read what was kept of this device, else measure and keep it. A folder that cannot be written is no harm."""
    if folder is None:
        return Calibration(device, measure())
    file = folder / f"transfer-{re.sub(r'[^A-Za-z0-9.]+', '-', device)}.json"
    kept = _read(file)
    if kept and kept.device == device and {rate.path for rate in kept.rates} >= set(paths):
        return kept
    found = Calibration(device, measure())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacement(file) as partial:
            partial.write_bytes(msgspec.json.encode(found))
    except OSError as exc:
        logger.info("the calibration of %s is not kept: %s", device, exc)
    return found


def _read(file: FilePath) -> Calibration | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Calibration)
    except (OSError, msgspec.MsgspecError):
        return None


def measure(
    site: Setup, movers: MakeMovers, clock: Callable[[], float] = time.perf_counter
) -> tuple[Rate, ...]:
    """Time each way in both directions at each size that a slot holds. Writes into slots: they must be free.

    A way that fails is left out, and so is what the device has no memory for.
    """
    rates: list[Rate] = []
    stream = site.streams.open()
    sizes = [size for size in SIZES if size <= site.arena.slot_nbytes]
    for run_nbytes, direction in product(sizes, Direction):
        try:
            rates += _rates(site, movers, direction, run_nbytes, stream, clock)
        except Exception as exc:
            logger.warning("copies in runs of %d bytes are not measured: %s", run_nbytes, exc)
            break
    if site.device.type != "cpu":
        # Torch would keep what was taken for this.
        torch.get_device_module(site.device).empty_cache()
    return tuple(rates)


def _rates(
    site: Setup,
    movers: MakeMovers,
    direction: Direction,
    run_nbytes: int,
    stream: int,
    clock: Callable[[], float],
) -> list[Rate]:
    """Measure one size in one direction; the device's memory that it takes goes with the return."""
    rates = []
    trial, work, pages = _trial(site, run_nbytes)
    nbytes = trial.layout.moved_nbytes(work)
    for path, mover in movers(trial, {0: [pages]}, direction).items():
        try:
            seconds = statistics.median(_times(trial, mover, work, stream, clock))
        except Exception as exc:
            logger.warning("%s: %s does not work here: %s", direction, path, exc)
        else:
            rates.append(Rate(direction, path, run_nbytes, nbytes / max(1e-9, seconds)))
    return rates


def _times(
    site: Setup, mover: Mover, work: Work, stream: int, clock: Callable[[], float]
) -> list[float]:
    """Seconds from the call to the end of the copy; the first call is not counted, it compiles and allocates."""
    seconds = []
    for _ in range(1 + _REPEATS):
        started = clock()
        mover.move(work, stream, site.streams.mark(COMPUTE))
        site.streams.mark(stream).wait()
        seconds.append(clock() - started)
    return seconds[1:]


def _trial(site: Setup, run_nbytes: int) -> tuple[Setup, Work, torch.Tensor]:
    """Lay pages out so that no two of them make one run."""
    per_chunk = max(1, min(site.arena.slot_nbytes, 2 << 20) // run_nbytes)
    chunks = max(1, min(site.arena.slots, NBYTES // (per_chunk * run_nbytes)))
    blocks = chunks * per_chunk
    rows = torch.zeros((blocks, 2 * run_nbytes), dtype=torch.int8, device=site.device)
    plane = PageRun(rows.data_ptr(), 2 * run_nbytes, run_nbytes)
    layout = PageMap({0: [plane]}, per_chunk, zeros=rows.data_ptr())
    order = np.random.default_rng(0).permutation(blocks).reshape(chunks, per_chunk)
    work = Work(0, np.arange(chunks), order)
    return site._replace(layout=layout), work, rows[:, :run_nbytes]
