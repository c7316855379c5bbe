"""A full disk, a file that may not grow, a signal: errors of the real kernel, one operation each."""

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.types import OpKind, OpStatus
from tests.interrupts import heeded
from tests.io_process.rig import file_tier, rig


def leftovers(path: Path) -> list[Path]:
    return list(path.rglob("*.partial"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k,mode=700", "none", str(path)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mount was refused: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_refuses_writes_and_serves_reads(small_disk: Path) -> None:
    with rig([file_tier(small_disk)]) as io:
        for i in range(12):
            io.fill(i)
        results = io.run(*[io.op(OpKind.WRITE, i) for i in range(12)])
        well = [i for i, result in enumerate(results) if result.status is OpStatus.OK]
        full = [result for result in results if result.status is not OpStatus.OK]
        assert well
        assert full
        assert all("No space left" in result.error for result in full)
        assert not leftovers(small_disk)
        assert len(list(small_disk.rglob("*.kvt"))) == len(well)
        assert io.one(OpKind.READ, well[0], slot=40).status is OpStatus.OK
        io.run(*[io.op(OpKind.REMOVE, i) for i in well])
        assert io.one(OpKind.WRITE, 0).status is OpStatus.OK


def test_a_file_size_limit_is_an_error(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)]) as io:
        assert io.client.pid
        io.fill(0)
        limits = resource.prlimit(io.client.pid, resource.RLIMIT_FSIZE, (8192, -1))
        result = io.one(OpKind.WRITE, 0)
        assert result.status is OpStatus.ERROR
        assert "File too large" in result.error
        assert not leftovers(tmp_path)
        resource.prlimit(io.client.pid, resource.RLIMIT_FSIZE, limits)
        assert io.one(OpKind.WRITE, 0).status is OpStatus.OK


def test_no_descriptors_left_is_an_error(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)]) as io:
        assert io.client.pid
        io.fill(0)
        used = len(os.listdir(f"/proc/{io.client.pid}/fd"))
        _, hard = limits = resource.prlimit(io.client.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(io.client.pid, resource.RLIMIT_NOFILE, (used - 1, hard))
        assert "Too many open files" in io.one(OpKind.WRITE, 0).error
        resource.prlimit(io.client.pid, resource.RLIMIT_NOFILE, limits)
        assert io.one(OpKind.WRITE, 0).status is OpStatus.OK
        assert len(os.listdir(f"/proc/{io.client.pid}/fd")) == used


def test_an_interrupt_of_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    with heeded(), rig([file_tier(tmp_path)]) as io:
        assert io.client.pid
        pid = io.client.pid
        os.kill(pid, signal.SIGINT)
        assert io.one(OpKind.PROBE).status is OpStatus.OK
        assert io.client.pid == pid


def test_many_operations_leak_no_descriptor(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path, "zstd")]) as io:
        before = len(os.listdir(f"/proc/{io.client.pid}/fd"))
        for i in range(50):
            io.fill(i)
        for _ in range(3):
            io.run(*[io.op(OpKind.WRITE, i) for i in range(50)])
            io.run(*[io.op(OpKind.READ, i) for i in range(60)])
            io.one(OpKind.RESET, text="again")
            io.one(OpKind.PROBE)
        io.until(lambda: not list(tmp_path.glob(".trash*")))
        assert len(os.listdir(f"/proc/{io.client.pid}/fd")) == before
