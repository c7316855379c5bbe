"""What the driver is called with, read back from the arguments themselves."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer import cuda
from kvtier.transfer.driver import BATCH, CudaDriver, _Attributes
from kvtier.transfer.paths import Path
from tests.transfer.contract import pages
from tests.transfer.simulated import hardware

Numbers = list[int]


class Library:
    """Takes the driver's calls apart; `code` is what they answer."""

    def __init__(self) -> None:
        self.code = 0
        self.calls: list[tuple[object, ...]] = []

    def cuGetErrorName(self, code: int, text: object) -> int:
        text._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"  # type: ignore[attr-defined] # of byref
        return 0

    def cuMemHostRegister_v2(self, *arguments: ctypes.c_uint64) -> int:
        return self._say("register", *(argument.value for argument in arguments))

    def cuMemHostUnregister(self, *arguments: ctypes.c_uint64) -> int:
        return self._say("unregister", *(argument.value for argument in arguments))

    def cuStreamCreateWithPriority(
        self, stream: object, flags: ctypes.c_uint, priority: ctypes.c_int
    ) -> int:
        stream._obj.value = 4711  # type: ignore[attr-defined] # of byref
        return self._say("stream", flags.value, priority.value)

    def cuMemcpyAsync(self, *arguments: ctypes.c_uint64) -> int:
        return self._say("copy", *(argument.value for argument in arguments))

    def _say(self, *call: object) -> int:
        self.calls.append(call)
        return self.code


class BatchLibrary(Library):
    """A driver from 12.8 on."""

    def cuMemcpyBatchAsync(
        self,
        dst: ctypes.c_void_p,
        src: ctypes.c_void_p,
        nbytes: ctypes.c_void_p,
        n: ctypes.c_size_t,
        attributes: object,
        first: ctypes.c_void_p,
        kinds: ctypes.c_size_t,
        failed: object,
        stream: ctypes.c_void_p,
    ) -> int:
        found: _Attributes = attributes._obj  # type: ignore[attr-defined] # of byref
        assert kinds.value == 1
        assert read(first, n.value) == [0] * n.value
        arrays = [read(pointer, n.value) for pointer in (dst, src, nbytes)]
        return self._say("batch", *arrays, found.order, found.flags, stream.value)


def read(pointer: ctypes.c_void_p, n: int) -> Numbers:
    return list((ctypes.c_uint64 * n).from_address(pointer.value or 0))


def array(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(numbers, np.uint64)


Load = Callable[[Library], CudaDriver]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    def load(library: Library) -> CudaDriver:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
        return CudaDriver()

    return load


@pytest.mark.parametrize(("any_order", "order"), [(False, 1), (True, 3)])
def test_copies_are_one_call(load: Load, any_order: bool, order: int) -> None:
    library = BatchLibrary()
    dst, src, nbytes = array(1 << 40, 7), array(5, 1 << 50), array(16, 32)
    load(library).copy(dst, src, nbytes, 77, any_order=any_order)
    assert library.calls == [("batch", [1 << 40, 7], [5, 1 << 50], [16, 32], order, 1, 77)]


def test_many_copies_are_calls_of_a_size_that_drivers_are_known_to_take(load: Load) -> None:
    library = BatchLibrary()
    n = 2 * BATCH + 3
    dst = np.arange(n, dtype=np.uint64)
    load(library).copy(dst, dst + 7, np.full(n, 16, np.uint64), 77, any_order=True)
    called = [call[1:3] for call in library.calls]
    assert [len(found[0]) for found in called if isinstance(found[0], list)] == [BATCH, BATCH, 3]
    assert called[2] == ([2 * BATCH, n - 2, n - 1], [2 * BATCH + 7, n + 5, n + 6])


def test_without_batches_copies_are_started_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    library = BatchLibrary()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    CudaDriver(batches=False).copy(array(7), array(6), array(32), 77, any_order=True)
    assert library.calls == [("copy", 7, 6, 32, 77)]


def test_a_stream_of_a_priority(load: Load) -> None:
    library = Library()
    assert load(library).stream(-1) == 4711
    assert library.calls == [("stream", 1, -1)]


def test_arrays_with_gaps_are_straightened(load: Load) -> None:
    library = BatchLibrary()
    table = np.arange(12, dtype=np.uint64).reshape(4, 3)
    load(library).copy(table[:, 0], table[:, 1], table[:, 2], 1, any_order=False)
    assert library.calls[0][1:4] == ([0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11])


def test_an_older_driver_copies_one_by_one(load: Load) -> None:
    library = Library()
    load(library).copy(array(1 << 40, 7), array(5, 6), array(16, 32), 77, any_order=True)
    assert library.calls == [("copy", 1 << 40, 5, 16, 77), ("copy", 7, 6, 32, 77)]


def test_nothing_to_copy_is_no_call(load: Load) -> None:
    library = BatchLibrary()
    load(library).copy(array(), array(), array(), 1, any_order=False)
    assert library.calls == []


def test_pinning_is_for_every_device_and_for_kernels(load: Load) -> None:
    library = Library()
    driver = load(library)
    driver.register(1 << 45, 1 << 34)
    driver.unregister(1 << 45)
    assert library.calls == [("register", 1 << 45, 1 << 34, 3), ("unregister", 1 << 45)]


def test_what_the_driver_refuses_has_its_name(load: Load) -> None:
    library = BatchLibrary()
    library.code = 2
    with pytest.raises(OSError, match="cuMemHostRegister_v2: CUDA_ERROR_OUT_OF_MEMORY"):
        load(library).register(4096, 4096)


def test_attributes_are_laid_out_as_the_driver_reads_them() -> None:
    assert ctypes.sizeof(_Attributes) == 24
    assert _Attributes.flags.offset == 20


def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(OSError, match=r"libcuda\.so\.none"):
        CudaDriver("libcuda.so.none")


def test_a_driver_that_does_not_say_what_kernels_reach_has_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Silent(CudaDriver):
        def __init__(self) -> None:
            pass

        def same_addresses(self, device: int) -> bool:
            raise OSError(1, "CUDA_ERROR_INVALID_VALUE")

    assert not cuda._same_addresses(Silent(), torch.device("cuda", 0))
    assert "CUDA_ERROR_INVALID_VALUE" in caplog.text


@pytest.mark.parametrize("same", [True, False])
def test_addresses_that_kernels_do_not_share_are_torch_s_business(
    monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The copy engine too is given the host's addresses."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(cuda, "_driver", lambda device: CudaDriver.__new__(CudaDriver))
    monkeypatch.setattr(cuda, "_same_addresses", lambda driver, device: same)
    monkeypatch.setattr(cuda, "_name", lambda device: "NVIDIA")
    found = cuda.find(device)
    assert found.registrar is not None
    assert found.paths(pinned=True) == ((Path.BATCHED, Path.PLAIN) if same else (Path.PLAIN,))
    assert not found.kernels  # there is no CuPy


def test_an_arena_that_memory_lacks_for_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find", lambda device: hardware())
    monkeypatch.setattr(cuda, "user_folder", lambda: None)
    for pin in (True, False):
        arena = Arena(2, 4096)
        engine = cuda.stream_engine(arena, {0: pages([4096])}, 1, pin=pin)
        assert engine._pinning.pinned == pin
        assert (engine.paths == (Path.PLAIN,)) != pin
        engine.close()
        arena.close()
