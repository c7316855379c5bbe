"""The disk below a file tier, characterised with fio: engine, block size, depth, mix."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

ENGINES = ("libaio", "io_uring")
MIXES = ("randread", "randwrite", "randrw")
BLOCKS = (64 << 10, 512 << 10, 2 << 20)
DEPTHS = (1, 8, 32)
_FILE = 256 << 20


class Cell(NamedTuple):
    """One run of fio."""

    engine: str
    mix: str
    block_nbytes: int
    depth: int
    gb_s: float  # both ways together
    p99_s: float  # of reads where there are any


def installed() -> bool:
    """Whether fio is there."""
    return shutil.which("fio") is not None


def characterise(
    folder: Path,
    seconds: float,
    *,
    engines: Sequence[str] = ENGINES,
    mixes: Sequence[str] = MIXES,
    blocks: Sequence[int] = BLOCKS,
    depths: Sequence[int] = DEPTHS,
) -> Iterator[Cell]:
    """Run fio for so long at each point, in a file of its own below `folder`, past the page cache.

    What fio refuses, io_uring in a container for example, is left out.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kvtier-fio-") as scratch:
        for engine, mix, block, depth in product(engines, mixes, blocks, depths):
            cell = _run(Path(scratch), seconds, Cell(engine, mix, block, depth, 0.0, 0.0))
            if cell is not None:
                yield cell


def _run(folder: Path, seconds: float, cell: Cell) -> Cell | None:
    command = [
        "fio",
        "--name=kvtier",
        f"--filename={folder / 'data'}",
        f"--size={_FILE}",
        f"--rw={cell.mix}",
        "--rwmixread=70",
        f"--ioengine={cell.engine}",
        "--direct=1",
        f"--iodepth={cell.depth}",
        f"--bs={cell.block_nbytes}",
        "--time_based",
        f"--runtime={seconds}",
        "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    nbytes_s = job["read"]["bw_bytes"] + job["write"]["bw_bytes"]
    way = job["read"] if job["read"]["io_bytes"] else job["write"]
    p99_ns = way.get("clat_ns", {}).get("percentile", {}).get("99.000000", 0)
    return cell._replace(gb_s=nbytes_s / 1e9, p99_s=p99_ns / 1e9)
