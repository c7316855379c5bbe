"""The file tier against fio: GB/s of raw 2 MiB chunks through a whole I/O process.

Both write many files of one chunk, created when written, and read them back, with the same depth in
the same directory, past the page cache. They take turns, each first in every other pair; the result is the median of the ratios.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import _report

from kvtier.io_process.client import IoClient, IoSetup
from kvtier.memory.arena import Arena
from kvtier.types import OpKind, OpResult, OpStatus, TierOp

CHUNK = 2 << 20
SLOTS = 32


class Speed(NamedTuple):
    """GB/s each way."""

    write: float
    read: float


def main() -> None:
    """Take turns with fio and report both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="a directory on the disk to measure; temporary by default")
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=6)
    arguments = parser.parse_args()
    _report.machine()
    if shutil.which("fio") is None:
        sys.exit(
            "bench/file_tier.py compares with fio, which is not installed (apt-get install fio)"
        )
    pairs = []
    with tempfile.TemporaryDirectory(dir=arguments.dir) as path:
        for i in range(arguments.pairs):
            ours = partial(run_kvtier, Path(path), arguments.chunks, arguments.threads)
            theirs = partial(run_fio, Path(path), arguments.chunks, arguments.threads)
            if i % 2:  # whoever comes second meets the disk that the first one left
                fio, kvtier = theirs(), ours()
            else:
                kvtier, fio = ours(), theirs()
            pairs.append((kvtier, fio))
    for way in Speed._fields:
        kvtier_speeds, fio_speeds = ([getattr(pair[i], way) for pair in pairs] for i in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(kvtier_speeds, fio_speeds, strict=True))
        _report.report("file_tier", f"{way} kvtier", statistics.median(kvtier_speeds), "GB/s")
        _report.report("file_tier", f"{way} fio", statistics.median(fio_speeds), "GB/s")
        _report.report("file_tier", f"{way} kvtier / fio", ratio, "ratio", 0.9)


def run_kvtier(path: Path, chunks: int, threads: int) -> Speed:
    """Write and read back `chunks` chunks through a fresh I/O process."""
    directory = path / "kvtier"
    arena = Arena(SLOTS, CHUNK)
    for slot in range(SLOTS):
        arena.slot(slot)[:] = slot + 1
    tier: dict[str, object] = {"name": "nvme", "kind": "file", "options": {"path": str(directory)}}
    client = IoClient(
        IoSetup(
            arena_nbytes=arena.nbytes,
            slot_nbytes=CHUNK,
            group_nbytes={0: CHUNK},
            tiers=[tier],
            threads=threads,
        ),
        arena.fd,
    )
    client.wait_ready(20)
    run(client, [TierOp(1, OpKind.OPEN, 1, text="{}")])
    speeds = []
    for kind in (OpKind.WRITE, OpKind.READ):
        ops = [
            TierOp(2 + i, kind, 1, i.to_bytes(36, "little"), i % SLOTS, deadline_s=600)
            for i in range(chunks)
        ]
        speeds.append(chunks * CHUNK / run(client, ops) / 1e9)
    client.close(10)
    arena.close()
    shutil.rmtree(directory)
    return Speed(*speeds)


def run(client: IoClient, ops: list[TierOp]) -> float:
    """Submit, wait for every answer, and return the seconds."""
    started = time.perf_counter()
    client.submit(ops)
    answered = 0
    while answered < len(ops):
        for item in client.poll():
            if isinstance(item, OpResult):
                assert item.status is OpStatus.OK, item
                answered += 1
        time.sleep(0.0002)
    return time.perf_counter() - started


def run_fio(path: Path, chunks: int, depth: int) -> Speed:
    """Do the same with fio: libaio, one file per chunk, created when it is opened."""
    directory = path / "fio"
    directory.mkdir()
    speeds = [one_fio(directory, chunks, depth, way) for way in ("write", "read")]
    shutil.rmtree(directory)
    return Speed(*speeds)


def one_fio(directory: Path, chunks: int, depth: int, way: str) -> float:
    """Run one fio job and return its GB/s."""
    command = [
        "fio",
        "--name=chunks",
        f"--directory={directory}",
        f"--rw={way}",
        "--ioengine=libaio",
        "--direct=1",
        f"--iodepth={depth}",
        f"--bs={CHUNK}",
        f"--filesize={CHUNK}",
        f"--nrfiles={chunks}",
        "--openfiles=64",
        "--file_service_type=sequential",
        "--create_on_open=1",
        "--fallocate=none",
        "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][way]
    assert job["io_bytes"] == chunks * CHUNK, job["io_bytes"]
    return float(job["bw_bytes"]) / 1e9


if __name__ == "__main__":
    main()
