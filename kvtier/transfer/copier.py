"""Copies by address on a CUDA device: the copy engine through the driver, a kernel through CuPy."""

import torch

from kvtier.transfer.driver import CudaDriver
from kvtier.transfer.kernel import PieceKernel
from kvtier.transfer.page_map import Addresses
from kvtier.transfer.paths import Copier, Direction


class CudaCopier(Copier):
    """Runs on torch's current stream."""

    def __init__(
        self, driver: CudaDriver, device: torch.device, kernel: PieceKernel | None
    ) -> None:
        self._driver = driver
        self._device = device
        self._kernel = kernel

    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses, direction: Direction) -> None:
        stream = torch.cuda.current_stream(self._device).cuda_stream
        # Slots are written by the CPU before a load is submitted. Pages are written by a stream.
        any_order = direction is Direction.ONLOAD
        self._driver.copy(dst, src, nbytes, stream, any_order=any_order)

    def kernel(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        assert self._kernel is not None
        self._kernel.copy(dst, src, nbytes)
