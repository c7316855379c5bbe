"""Copies on the CPU backend: a thread per direction, and one system call for up to 1024 runs.

The engine's main thread lets go of the GIL often and for microseconds, so a thread that needs it back after
every page starves (measured: 0.2 s per page beside a spinning engine). Hence one call per batch of pages.
"""

import ctypes
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.engine import ChunkCopy, Moved, Transfer, TransferEngine, Urgency
from kvtier.transfer.page_map import PageMap, Runs, Work, works

_BATCH = 1024  # pieces per call: IOV_MAX
_BATCH_NBYTES = 1 << 30  # bytes per call: Linux moves just under 2 GiB
_REFUSED = {errno.EPERM, errno.ENOSYS}
_YIELD_S = 50e-6
_YIELD_EVERY_S = 1e-3

Pieces = npt.NDArray[np.uint64]
"""(n, 2): address and bytes of each piece, which is also the layout of `struct iovec`."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]


class CpuTransfer(Transfer):
    """A transfer that a thread of the pool carries out."""

    def __init__(self, engine: "CpuTransferEngine", future: "Future[Moved]") -> None:
        self._engine = engine
        self._future = future

    def done(self) -> bool:
        if not self._future.done():
            self._engine.give_way()
        return self._future.done()

    def rest(self, seconds: float) -> None:
        wait([self._future], seconds)

    def result(self) -> Moved:
        return self._future.result()


class CpuTransferEngine(TransferEngine):
    """One thread per direction, so that transfers of a direction end in order.

    The queues are bounded by the arena: a slot is in at most one transfer at a time.
    """

    beside = True

    def __init__(
        self,
        arena: Arena,
        pages: Mapping[int, Sequence[torch.Tensor]],
        blocks_per_chunk: int,
    ) -> None:
        super().__init__(arena, pages, blocks_per_chunk)
        largest = max(t.shape[1] for tensors in self.pages.values() for t in tensors)
        self._zeros = np.zeros(largest, np.uint8)
        self._layout = PageMap.of(self.pages, blocks_per_chunk, self._zeros.ctypes.data)
        self._offloads = ThreadPoolExecutor(1, "kvtier-offload")
        self._onloads = ThreadPoolExecutor(1, "kvtier-onload")
        self._gave_way_at = 0.0

    def offload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        return self._submit(self._offloads, self._offload, copies)

    def onload(self, copies: Sequence[ChunkCopy], urgency: Urgency = Urgency.DEMAND) -> Transfer:
        return self._submit(self._onloads, self._onload, copies)

    def close(self) -> None:
        self._offloads.shutdown()
        self._onloads.shutdown()

    def give_way(self) -> None:
        """Leave the GIL to the copy threads for a moment, seldom: a caller that spins would starve them."""
        if time.monotonic() - self._gave_way_at > _YIELD_EVERY_S:
            time.sleep(_YIELD_S)
            self._gave_way_at = time.monotonic()

    def _submit(
        self, thread: ThreadPoolExecutor, copy: Callable[[Work], None], copies: Sequence[ChunkCopy]
    ) -> Transfer:
        now = time.monotonic()
        return CpuTransfer(self, thread.submit(self._run, copy, tuple(copies), now))

    def _run(
        self, copy: Callable[[Work], None], copies: tuple[ChunkCopy, ...], submitted: float
    ) -> Moved:
        nbytes, waited, began = 0, time.monotonic() - submitted, time.thread_time()
        for work in works(copies):
            copy(work)
            nbytes += self._layout.moved_nbytes(work)
        worked = time.thread_time() - began
        return Moved(nbytes, time.monotonic() - submitted, waited, worked)

    def _offload(self, work: Work) -> None:
        device, slots = self._pieces(work, self._layout.offload_runs(work))
        copy_pieces(device, slots)

    def _onload(self, work: Work) -> None:
        device, slots = self._pieces(work, self._layout.onload_runs(work))
        copy_pieces(slots, device)

    def _pieces(self, work: Work, runs: Runs) -> tuple[Pieces, Pieces]:
        """Pair the runs on the device with their places in slots."""
        slots = work.slot_addresses(self.arena)[runs.chunk] + runs.offset
        ends = (runs.device, slots)
        device, slot = (np.stack([end, runs.nbytes], axis=-1) for end in ends)
        return device, slot


def copy_pieces(src: Pieces, dst: Pieces) -> None:
    """Copy pieces of this process's memory onto others, pairwise of equal size; the GIL is free meanwhile.

    An address that is not mapped is an OSError.
    """
    step = max(1, min(_BATCH, _BATCH_NBYTES // int(src[:, 1].max(initial=1))))
    for i in range(0, len(src), step):
        _copy_batch(
            np.ascontiguousarray(src[i : i + step]), np.ascontiguousarray(dst[i : i + step])
        )


def _copy_batch(src: Pieces, dst: Pieces) -> None:
    n = len(src)
    got = _libc.process_vm_readv(os.getpid(), dst.ctypes.data, n, src.ctypes.data, n, 0)
    if got == src[:, 1].sum():
        return
    if got == -1 and ctypes.get_errno() in _REFUSED:  # a sandbox without the call: page by page
        for (from_, nbytes), to in zip(src.tolist(), dst[:, 0].tolist(), strict=True):
            ctypes.memmove(to, from_, nbytes)
        return
    code = ctypes.get_errno() if got == -1 else errno.EFAULT
    raise OSError(code, f"{os.strerror(code)}: a copy of {n} pages between device and slots")
