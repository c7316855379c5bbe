"""Copies by address on a CUDA device: the copy engine through the driver, a kernel through CuPy."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from kvtier.transfer.driver import CudaDriver
from kvtier.transfer.paths import Copier, Direction
from kvtier.transfer.plan import Addresses, cut

BLOCKS = 12
"""Thread blocks of the kernel, so at most as many multiprocessors."""
THREADS = 512
PIECE_NBYTES = 32 << 10
"""A warp copies a piece of at most this size; larger runs are shared among warps."""

SOURCE = r"""
typedef unsigned long long u64;

template <typename Word>
__device__ void copy_piece(char* dst, const char* src, u64 nbytes, int lane) {
  const Word* from = reinterpret_cast<const Word*>(src);
  Word* to = reinterpret_cast<Word*>(dst);
  const u64 n = nbytes / sizeof(Word);
  u64 i = lane;
  for (; i + 7 * 32 < n; i += 8 * 32) {
    Word held[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) held[k] = __ldcs(from + i + k * 32);
#pragma unroll
    for (int k = 0; k < 8; ++k) __stcs(to + i + k * 32, held[k]);
  }
  for (; i < n; i += 32) __stcs(to + i, __ldcs(from + i));
}

extern "C" __global__ void __launch_bounds__(512)
copy_pieces(const u64* dst, const u64* src, const u64* nbytes, u64 n) {
  const int lane = threadIdx.x % 32;
  const u64 warps = (u64)gridDim.x * (blockDim.x / 32);
  for (u64 i = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < n; i += warps) {
    char* to = reinterpret_cast<char*>(dst[i]);
    const char* from = reinterpret_cast<const char*>(src[i]);
    const u64 size = nbytes[i];
    const u64 odd = dst[i] | src[i] | size;
    if (odd % 16 == 0) copy_piece<uint4>(to, from, size, lane);
    else if (odd % 4 == 0) copy_piece<unsigned int>(to, from, size, lane);
    else copy_piece<unsigned char>(to, from, size, lane);
  }
}
"""


class Kernel(Protocol):
    """A compiled kernel: starts on CuPy's current stream."""

    def __call__(
        self, grid: tuple[int], block: tuple[int], arguments: tuple[np.uint64, ...]
    ) -> None: ...


class _StreamHandle:
    """A stream of torch's as other libraries take it (the CUDA stream protocol)."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)


class CudaCopier(Copier):
    """Runs on torch's current stream; CuPy is imported when a kernel is first wanted."""

    def __init__(self, driver: CudaDriver, device: torch.device) -> None:
        self._driver = driver
        self._device = device

    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses, direction: Direction) -> None:
        stream = torch.cuda.current_stream(self._device).cuda_stream
        # Slots are written by the CPU before a load is submitted. Pages are written by a stream.
        any_order = direction is Direction.ONLOAD
        self._driver.copy(dst, src, nbytes, stream, any_order=any_order)

    def kernel(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        if not len(nbytes):
            return
        import cupy

        run, offset, sizes = cut(nbytes, PIECE_NBYTES)
        pieces = np.stack([dst[run] + offset, src[run] + offset, sizes]).view(np.int64)
        table = torch.from_numpy(pieces).pin_memory().to(self._device, non_blocking=True)
        columns = [np.uint64(column.data_ptr()) for column in table]
        handle = torch.cuda.current_stream(self._device).cuda_stream
        with cupy.cuda.Device(self._device.index or 0), _cupy_stream(handle):
            self._compiled((BLOCKS,), (THREADS,), (*columns, np.uint64(len(sizes))))

    @cached_property
    def _compiled(self) -> Kernel:
        import cupy

        kernel: Kernel = cupy.RawKernel(SOURCE, "copy_pieces")
        return kernel


def _cupy_stream(handle: int) -> AbstractContextManager[object]:
    import cupy

    stream: AbstractContextManager[object]
    if hasattr(cupy.cuda.Stream, "from_external"):  # from CuPy 14 on
        stream = cupy.cuda.Stream.from_external(_StreamHandle(handle))
    else:
        stream = cupy.cuda.ExternalStream(handle)
    return stream
