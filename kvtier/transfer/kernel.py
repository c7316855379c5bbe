"""A kernel that copies pieces of memory by address: a few multiprocessors, host memory included. Needs CuPy.

Its list of pieces lies in pinned memory and is read from there: bringing it to the device would queue behind
the large copies that it belongs between.
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from kvtier.transfer.page_map import Addresses, cut
from kvtier.transfer.streams import Mark, TorchMark

BLOCKS = 12
"""Thread blocks, so at most as many multiprocessors."""
THREADS = 512
PIECE_NBYTES = 32 << 10
"""A warp copies a piece of at most this size; larger runs are shared among warps."""
ROWS = 8192
"""Pieces of one launch. A row is its destination, its source, its bytes, and nothing: one read of 32 bytes."""
TABLES = 16
"""Lists that are there from the start; more are made when more are under way."""

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

// Warp w takes the pieces w, w + warps, w + 2 * warps and so on. Its lanes fetch the rows of the next 32 at once.
extern "C" __global__ void __launch_bounds__(512)
copy_pieces(const ulonglong2* rows, u64 n) {
  const int lane = threadIdx.x % 32;
  const u64 warps = (u64)gridDim.x * (blockDim.x / 32);
  const u64 warp = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  for (u64 first = warp; first < n; first += 32 * warps) {
    const u64 mine = first + lane * warps;
    ulonglong2 ends = make_ulonglong2(0, 0), size = make_ulonglong2(0, 0);
    if (mine < n) {
      ends = rows[2 * mine];
      size = rows[2 * mine + 1];
    }
    for (int k = 0; k < 32 && first + k * warps < n; ++k) {
      const u64 dst = __shfl_sync(0xffffffff, ends.x, k);
      const u64 src = __shfl_sync(0xffffffff, ends.y, k);
      const u64 nbytes = __shfl_sync(0xffffffff, size.x, k);
      char* to = reinterpret_cast<char*>(dst);
      const char* from = reinterpret_cast<const char*>(src);
      const u64 odd = dst | src | nbytes;
      if (odd % 16 == 0) copy_piece<uint4>(to, from, nbytes, lane);
      else if (odd % 4 == 0) copy_piece<unsigned int>(to, from, nbytes, lane);
      else copy_piece<unsigned char>(to, from, nbytes, lane);
    }
  }
}
"""


class Tables:
    """Pinned memory for lists of pieces, each used again once the kernel that reads it is over."""

    def __init__(self, pin: Callable[[], torch.Tensor], n: int = TABLES) -> None:
        """`pin` makes one table, shape (ROWS, 4), int64."""
        self._pin = pin
        self._free = [pin() for _ in range(n)]
        self._busy: deque[tuple[Mark, torch.Tensor]] = deque()

    def take(self) -> torch.Tensor:
        """Give a table that nobody reads."""
        while self._busy and self._busy[0][0].passed():
            self._free.append(self._busy.popleft()[1])
        return self._free.pop() if self._free else self._pin()

    def lend(self, table: torch.Tensor, until: Mark) -> None:
        """Take a table back that is read until a mark has passed."""
        self._busy.append((until, table))


CompiledKernel = Callable[[tuple[int], tuple[int], tuple[np.uint64, ...]], None]
"""Starts on CuPy's current stream, with the sizes of grid and block and the kernel's arguments."""


class _StreamHandle:
    """A stream of torch's as other libraries take it (the CUDA stream protocol)."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)


class PieceKernel:
    """Compiled for one device when it is made: nobody waits for that later.

    Raises:
        Exception: CuPy is missing, broken, or does not compile here.
    """

    def __init__(self, device: torch.device) -> None:
        import cupy

        self._device = device
        with cupy.cuda.Device(device.index or 0):
            kernel = cupy.RawKernel(SOURCE, "copy_pieces")
            kernel.compile()
        self._kernel: CompiledKernel = kernel
        self._tables = Tables(_pinned)

    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        """Start to copy runs on torch's current stream; host addresses must be pinned."""
        run, offset, sizes = cut(nbytes, PIECE_NBYTES)
        columns = (dst[run] + offset, src[run] + offset, sizes)
        for i in range(0, len(sizes), ROWS):
            table = self._tables.take()
            rows = table.numpy().view(np.uint64)
            n = len(sizes[i : i + ROWS])
            for at, column in enumerate(columns):
                rows[:n, at] = column[i : i + ROWS]
            self._launch(table.data_ptr(), n)
            self._tables.lend(table, self._mark())

    def _launch(self, rows: int, n: int) -> None:
        import cupy

        handle = torch.cuda.current_stream(self._device).cuda_stream
        with cupy.cuda.Device(self._device.index or 0), _cupy_stream(handle):
            self._kernel((BLOCKS,), (THREADS,), (np.uint64(rows), np.uint64(n)))

    def _mark(self) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types for it
        event.record(torch.cuda.current_stream(self._device))
        return TorchMark(event)


def _pinned() -> torch.Tensor:
    return torch.empty((ROWS, 4), dtype=torch.int64, pin_memory=True)


def _cupy_stream(handle: int) -> AbstractContextManager[object]:
    import cupy

    stream: AbstractContextManager[object]
    if hasattr(cupy.cuda.Stream, "from_external"):  # from CuPy 14 on
        stream = cupy.cuda.Stream.from_external(_StreamHandle(handle))
    else:
        stream = cupy.cuda.ExternalStream(handle)
    return stream
