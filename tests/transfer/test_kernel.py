"""The kernel: its source run on the host, its launches, and the pinned lists that it reads."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from kvtier.transfer import kernel
from kvtier.transfer.kernel import ROWS, PieceKernel, Tables
from kvtier.transfer.page_map import Addresses
from kvtier.transfer.streams import Mark

STREAM = 4711


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel's source, compiled for this machine."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "source.cu").write_text(kernel.SOURCE)
    library = folder / "kernel.so"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    source = Path(__file__).with_name("kernel_on_host.cpp")
    subprocess.run([*command, f"-I{folder}", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("n", [1, 31, 33, 700])
def test_every_byte_arrives_and_no_other_changes(on_host: ctypes.CDLL, n: int, step: int) -> None:
    """Pieces of any size at addresses that are multiples of `step`, more of them than lanes and warps."""
    random = np.random.default_rng(n + step)
    sizes = random.integers(0, 600, n) * step
    gaps = random.integers(0, 5, n) * step
    starts = np.cumsum(sizes + gaps) - sizes
    nbytes = int(starts[-1] + sizes[-1] + 64)
    source = random.integers(0, 255, nbytes, np.uint8)
    target = np.full(nbytes + 16, 7, np.uint8)
    wanted = target.copy()
    base = -target.ctypes.data % 16
    for at, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        wanted[base + at : base + at + size] = source[at : at + size]
    rows = np.zeros((n, 4), np.uint64)
    rows[:, 0] = target.ctypes.data + base + starts
    rows[:, 1] = source.ctypes.data + starts
    rows[:, 2] = sizes
    rows[:, 3] = 99  # is read by nobody
    rows = rows[random.permutation(n)].copy()
    on_host.run(ctypes.c_void_p(rows.ctypes.data), ctypes.c_ulonglong(n), 2, 64)
    assert np.array_equal(target, wanted)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_it_compiles_without_spills(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "source.cu").write_text(kernel.SOURCE)
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "source.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr


LATE: list[Callable[[], None]] = []
"""Launches that the device has not come to."""


def run_late(n: int) -> None:
    """Let the device come to its first `n` launches, of those that it has not done."""
    for launch in LATE[:n]:
        launch()
    del LATE[:n]


class HostKernel:
    """Runs the kernel's list of pieces on the host, when somebody asks whether it is over."""

    def __init__(self, source: str, name: str) -> None:
        assert f"\n{name}(" in source
        self.launches: list[tuple[int, int, int]] = []
        self.compiled = False

    def compile(self) -> None:
        self.compiled = True

    def __call__(
        self, grid: tuple[int], block: tuple[int], arguments: tuple[np.uint64, ...]
    ) -> None:
        assert self.compiled
        rows, n = map(int, arguments)
        LATE.append(partial(self._run, rows, n))
        self.launches.append((grid[0], block[0], n))

    def _run(self, rows: int, n: int) -> None:
        table = (ctypes.c_uint64 * (4 * n)).from_address(rows)
        for i in range(0, 4 * n, 4):
            assert table[i + 2] <= kernel.PIECE_NBYTES
            ctypes.memmove(table[i], table[i + 1], table[i + 2])


class Cupy(ModuleType):
    """As much of CuPy as is used, of version 13 or 14."""

    def __init__(self, version: int) -> None:
        super().__init__("cupy")
        self.streams: list[int] = []
        stream = SimpleNamespace()
        if version >= 14:
            stream.from_external = lambda protocol: self._stream(protocol.__cuda_stream__()[1])
        self.RawKernel = HostKernel
        self.cuda = SimpleNamespace(
            Stream=stream, ExternalStream=self._stream, Device=lambda index: nullcontext()
        )

    def _stream(self, handle: int) -> AbstractContextManager[None]:
        self.streams.append(handle)
        return nullcontext()


class Event:
    """An event of a device that gets there when it is asked for: what was launched before it is over then."""

    def record(self, stream: object) -> None:
        self.before = list(LATE)

    def query(self) -> bool:
        run_late(sum(launch in self.before for launch in LATE))
        return True


@pytest.fixture(params=[13, 14])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cupy:
    """A CuPy, and a torch whose device is the host."""
    LATE.clear()
    module = Cupy(request.param)
    monkeypatch.setitem(sys.modules, "cupy", module)
    current = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(kernel, "_pinned", table)
    return module


def table() -> torch.Tensor:
    return torch.empty((ROWS, 4), dtype=torch.int64)


def test_it_gets_pieces_on_the_current_stream(cupy: Cupy) -> None:
    random = np.random.default_rng(1)
    sizes = np.array([16, 5, 100_000, 32 << 10, 0, 70_001], np.uint64)
    src = random.integers(0, 255, int(sizes.sum()), np.uint8)
    dst = np.zeros_like(src)
    starts = np.cumsum(sizes, dtype=np.uint64) - sizes
    made = PieceKernel(torch.device("cpu"))
    for _ in range(2):
        made.copy(starts + np.uint64(dst.ctypes.data), starts + np.uint64(src.ctypes.data), sizes)
    run_late(2)
    assert np.array_equal(dst, src)
    assert cupy.streams == [STREAM] * 2
    assert isinstance(made._kernel, HostKernel)
    assert made._kernel.launches == [(kernel.BLOCKS, kernel.THREADS, 11)] * 2


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("tables", [1, 2, 16])
def test_a_long_list_is_several_launches_and_none_overwrites_a_table_that_is_read(
    tables: int,
) -> None:
    n = 3 * ROWS + 5
    src, dst = np.arange(n, dtype=np.uint64), np.zeros(n, np.uint64)
    at: Addresses = 8 * np.arange(n, dtype=np.uint64)
    sizes = np.full(n, 8, np.uint64)
    made = PieceKernel(torch.device("cpu"))
    made._tables = Tables(table, tables)
    for _ in range(2):
        made.copy(at + np.uint64(dst.ctypes.data), at + np.uint64(src.ctypes.data), sizes)
        run_late(len(LATE))
        assert np.array_equal(dst, src)
        dst[:] = 0
    assert isinstance(made._kernel, HostKernel)
    assert [launch[2] for launch in made._kernel.launches] == [ROWS, ROWS, ROWS, 5] * 2


class Passing(Mark):
    over = False

    def passed(self) -> bool:
        return self.over

    def wait(self) -> None: ...


def test_a_table_is_used_again_once_its_kernel_is_over() -> None:
    tables, mark = Tables(table, 1), Passing()
    first = tables.take()
    tables.lend(first, mark)
    second = tables.take()
    assert second is not first
    mark.over = True
    assert tables.take() is first


@pytest.mark.usefixtures("cupy")
def test_nothing_to_copy_is_no_launch() -> None:
    none = np.empty(0, np.uint64)
    made = PieceKernel(torch.device("cpu"))
    made.copy(none, none, none)
    assert isinstance(made._kernel, HostKernel)
    assert not made._kernel.launches
