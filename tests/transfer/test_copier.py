"""What CuPy and the driver are asked for, with both stood in for by the host's own memory."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from kvtier.transfer import copier
from kvtier.transfer.copier import CudaCopier
from kvtier.transfer.driver import CudaDriver
from kvtier.transfer.paths import Direction

STREAM = 4711


class HostKernel:
    """Runs the kernel's table of pieces on the host."""

    def __init__(self, source: str, name: str) -> None:
        assert f"\n{name}(" in source
        self.launches: list[tuple[int, int]] = []

    def __call__(
        self, grid: tuple[int], block: tuple[int], arguments: tuple[np.uint64, ...]
    ) -> None:
        *columns, n = map(int, arguments)
        dst, src, nbytes = ((ctypes.c_uint64 * n).from_address(column) for column in columns)
        for to, from_, size in zip(dst, src, nbytes, strict=True):
            assert size <= copier.PIECE_NBYTES
            ctypes.memmove(to, from_, size)
        self.launches.append((grid[0], block[0]))


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
            Stream=stream,
            ExternalStream=self._stream,
            Device=self._stream,
        )

    def _stream(self, handle: int) -> AbstractContextManager[None]:
        self.streams.append(handle)
        return nullcontext()


@pytest.fixture(params=[13, 14])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cupy:
    """A CuPy, and a torch whose device is the host."""
    module = Cupy(request.param)
    monkeypatch.setitem(sys.modules, "cupy", module)
    current = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return module


def test_the_kernel_gets_pieces_on_the_current_stream(cupy: Cupy) -> None:
    random = np.random.default_rng(1)
    sizes = np.array([16, 5, 100_000, 32 << 10, 0, 70_001], np.uint64)
    src = random.integers(0, 255, int(sizes.sum()), np.uint8)
    dst = np.zeros_like(src)
    starts = np.cumsum(sizes, dtype=np.uint64) - sizes
    engine = CudaCopier(CudaDriver.__new__(CudaDriver), torch.device("cpu"))
    for _ in range(2):
        engine.kernel(
            starts + np.uint64(dst.ctypes.data), starts + np.uint64(src.ctypes.data), sizes
        )
    assert np.array_equal(dst, src)
    assert cupy.streams == [STREAM, 0] * 2 or cupy.streams == [0, STREAM] * 2
    compiled = engine._compiled
    assert isinstance(compiled, HostKernel)
    assert compiled.launches == [(copier.BLOCKS, copier.THREADS)] * 2


@pytest.mark.usefixtures("cupy")
def test_sources_of_loads_may_be_read_early_and_those_of_stores_may_not() -> None:
    calls: list[tuple[int, bool]] = []

    class Driver(CudaDriver):
        def __init__(self) -> None: ...

        def copy(self, *_: object, any_order: bool) -> None:
            calls.append((int(_[3]), any_order))  # type: ignore[call-overload]

    engine = CudaCopier(Driver(), torch.device("cpu"))
    one = np.ones(1, np.uint64)
    for direction in Direction:
        engine.copy(one, one, one, direction)
    assert calls == [(STREAM, False), (STREAM, True)]


@pytest.mark.usefixtures("cupy")
def test_nothing_to_copy_is_no_launch() -> None:
    none = np.empty(0, np.uint64)
    engine = CudaCopier(CudaDriver.__new__(CudaDriver), torch.device("cpu"))
    engine.kernel(none, none, none)
    assert "_compiled" not in vars(engine)
