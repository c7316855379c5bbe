"""A file that may not grow, no descriptors, a signal: errors of the real kernel, one operation each."""

import os
import resource
import signal
from pathlib import Path

import pytest

from kvtier.types import OpKind, OpStatus
from tests.interrupts import heeded
from tests.io_process.rig import file_tier, rig


def leftovers(path: Path) -> list[Path]:
    return list(path.rglob("*.partial"))


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


def test_a_medium_that_fails_every_read_does_not_flood_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with rig([file_tier(tmp_path)]) as io:
        assert io.client.pid
        io.fill(0)
        assert io.one(OpKind.WRITE, 0).status is OpStatus.OK
        used = len(os.listdir(f"/proc/{io.client.pid}/fd"))
        _, hard = resource.prlimit(io.client.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(io.client.pid, resource.RLIMIT_NOFILE, (used - 1, hard))
        reads = io.run(*[io.op(OpKind.READ, 0, slot=1) for _ in range(50)])
        assert {read.status for read in reads} == {OpStatus.ERROR}
    said = [line for line in capfd.readouterr().err.splitlines() if "READ of" in line]
    assert len(said) == 1


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
