"""The disk below a file tier, characterised with fio: engine, block size, depth, mix."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

from kvtier.units import format_nbytes

ENGINES = ("libaio", "io_uring")
MIXES = ("randread", "randwrite", "randrw")
BLOCKS = (64 << 10, 512 << 10, 2 << 20)
DEPTHS = (1, 8, 32)
POINTS = len(ENGINES) * len(MIXES) * len(BLOCKS) * len(DEPTHS)
_FILE = 256 << 20
_LEAST = 16 << 20  # of such pieces
_PATIENCE_S = 60.0


class Cell(NamedTuple):
    """One run of fio."""

    engine: str
    mix: str
    block_nbytes: int
    depth: int
    gb_s: float = 0.0  # both ways together
    p99_s: float = 0.0  # of reads where there are any


class Disk(NamedTuple):
    """What fio found of one disk, and what it refused."""

    cells: list[Cell]
    refused: list[str]


def installed() -> bool:
    """Whether fio is there."""
    return shutil.which("fio") is not None


def characterise(
    folder: Path,
    seconds: float,
    *,
    capacity: int = _FILE,
    engines: Sequence[str] = ENGINES,
    mixes: Sequence[str] = MIXES,
    blocks: Sequence[int] = BLOCKS,
    depths: Sequence[int] = DEPTHS,
) -> Disk:
    """Run fio for so long at each point, in a file of its own below `folder`, past the page cache.

    The file has no name, so that nothing of it can stay, and takes at most `capacity` and a quarter of what is free.
    What fio refuses, io_uring in a container for example, is left out and said.
    """
    free = shutil.disk_usage(folder).free
    nbytes = min(_FILE, capacity, free // 4) // _LEAST * _LEAST
    if not nbytes:
        return Disk([], [f"{folder}: there is no room for a file of {format_nbytes(_LEAST)}"])
    cells: list[Cell] = []
    refused: list[str] = []
    with tempfile.TemporaryFile(dir=folder) as data:
        block = os.urandom(_LEAST)
        for _ in range(nbytes // _LEAST):
            data.write(block)
        data.flush()
        os.fsync(data.fileno())  # or the first point waits for it
        for engine, mix, size, depth in product(engines, mixes, blocks, depths):
            try:
                cells.append(_run(data.fileno(), nbytes, seconds, Cell(engine, mix, size, depth)))
            except (OSError, ValueError, LookupError, subprocess.SubprocessError) as exc:
                refused.append(f"{engine}, {mix}, {format_nbytes(size)}, depth {depth}: {exc}")
    return Disk(cells, refused)


def _run(data: int, nbytes: int, seconds: float, cell: Cell) -> Cell:
    """Run fio on an open file; it ends with us.

    Raises:
        OSError: fio cannot be started, or says no.
        ValueError: what it says is not understood.
    """
    command = [
        "fio",
        "--name=kvtier",
        f"--filename=/proc/self/fd/{data}",
        "--allow_file_create=0",
        f"--size={nbytes}",
        f"--rw={cell.mix}",
        "--rwmixread=70",
        f"--ioengine={cell.engine}",
        "--direct=1",
        "--thread",
        f"--iodepth={cell.depth}",
        f"--bs={cell.block_nbytes}",
        "--time_based",
        f"--runtime={max(1, round(seconds * 1000))}ms",
        "--output-format=json",
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[data],
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate(timeout=seconds + _PATIENCE_S)
        except BaseException:  # Ctrl-C too: its jobs are processes of their own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise OSError((error.strip() or f"status {process.returncode}").splitlines()[0])
    job = json.loads(out[out.index("{") :])["jobs"][0]
    nbytes_s = job["read"]["bw_bytes"] + job["write"]["bw_bytes"]
    way = job["read"] if job["read"]["io_bytes"] else job["write"]
    p99_ns = way.get("clat_ns", {}).get("percentile", {}).get("99.000000", 0)
    return cell._replace(gb_s=nbytes_s / 1e9, p99_s=p99_ns / 1e9)
