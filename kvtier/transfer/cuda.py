"""The engine on a CUDA device: what the device has is found here, once, at the start."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.calibration import user_folder
from kvtier.transfer.driver import CudaDriver
from kvtier.transfer.hardware import Hardware
from kvtier.transfer.kernel import PieceKernel
from kvtier.transfer.page_map import Addresses
from kvtier.transfer.paths import Copier, Direction
from kvtier.transfer.stream_engine import StreamTransferEngine
from kvtier.transfer.streams import TorchStreams

logger = logging.getLogger(__name__)


class CudaCopier(Copier):
    """The copy engine through the driver, a kernel through CuPy; on torch's current stream."""

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


def stream_engine(
    arena: Arena,
    pages: Mapping[int, Sequence[torch.Tensor]],
    blocks_per_chunk: int,
    *,
    pin: bool = True,
) -> StreamTransferEngine:
    """Make the engine for the device that the pages are on: the fast one on CUDA, the plain one elsewhere.

    Pinning takes all of the arena's memory at once; without it copies are slower.
    """
    hardware = find(next(iter(pages.values()))[0].device)
    if not pin:
        hardware = hardware._replace(registrar=None)
    return StreamTransferEngine(arena, pages, blocks_per_chunk, hardware, cache=user_folder())


def find(device: torch.device) -> Hardware:
    """Find out what a device offers. Anything but NVIDIA's CUDA gets the plain way, without pinning."""
    driver = _driver(device)
    enter = partial(torch.get_device_module(device).set_device, device)
    if driver is None:
        return Hardware(device.type, device, TorchStreams(device), None, False, None, enter)
    streams = TorchStreams(device, partial(_own_stream, driver, device))
    if not _same_addresses(driver, device):  # the device knows pinned memory by other addresses
        return Hardware(_name(device), device, streams, None, False, driver, enter)
    kernel = _kernel(device)
    copier = CudaCopier(driver, device, kernel)
    return Hardware(_name(device), device, streams, copier, kernel is not None, driver, enter)


def _driver(device: torch.device) -> CudaDriver | None:
    if device.type != "cuda" or torch.version.cuda is None:  # ROCm calls itself cuda too
        return None
    torch.cuda.synchronize(device)  # makes the context that the driver's calls need
    # lmdeploy's turbomind found the call to crash on compute capability 10.0.
    batches = torch.cuda.get_device_capability(device) < (10, 0)
    try:
        return CudaDriver(batches=batches)
    except OSError as exc:
        logger.warning("the CUDA driver cannot be called (%s): copies take torch's way", exc)
        return None


def _same_addresses(driver: CudaDriver, device: torch.device) -> bool:
    try:
        return driver.same_addresses(device.index or 0)
    except OSError as exc:
        logger.warning("the CUDA driver does not say by which addresses memory is known: %s", exc)
        return False


def _own_stream(driver: CudaDriver, device: torch.device, priority: int) -> torch.cuda.Stream:
    with torch.cuda.device(device):
        handle = driver.stream(priority)
    return torch.cuda.ExternalStream(handle, device=device)  # type: ignore[no-untyped-call] # torch has no types for it


def _kernel(device: torch.device) -> PieceKernel | None:
    """Compile the kernel, if CuPy is there and works: a broken one raises anything."""
    try:
        return PieceKernel(device)
    except Exception as exc:
        logger.info("without CuPy (pip install 'kvtier[cuda]') small pages are slower: %s", exc)
        return None


def _name(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    which = getattr(properties, "uuid", device.index)  # two of a kind may hang on unlike links
    return f"{properties.name} {which}, torch {torch.__version__}"
