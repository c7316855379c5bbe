"""The engine on a CUDA device: what the device has is found here, once, at the start."""

import importlib
import logging
import platform
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from kvtier.arena import Arena
from kvtier.transfer.calibration import user_folder
from kvtier.transfer.copier import CudaCopier
from kvtier.transfer.driver import CudaDriver
from kvtier.transfer.hardware import Hardware
from kvtier.transfer.pinning import Registrar
from kvtier.transfer.stream_engine import StreamTransferEngine
from kvtier.transfer.streams import TorchStreams

logger = logging.getLogger(__name__)


class CudaRegistrar(Registrar):
    """Pins through the driver."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver

    def register(self, address: int, nbytes: int) -> None:
        self._driver.register(address, nbytes)

    def unregister(self, address: int) -> None:
        self._driver.unregister(address)


def stream_engine(
    arena: Arena, pages: Mapping[int, Sequence[torch.Tensor]], blocks_per_chunk: int
) -> StreamTransferEngine:
    """Make the engine for the device that the pages are on: the fast one on CUDA, the plain one elsewhere."""
    device = next(iter(pages.values()))[0].device
    return StreamTransferEngine(arena, pages, blocks_per_chunk, find(device), cache=user_folder())


def find(device: torch.device) -> Hardware:
    """Find out what a device offers. Anything but NVIDIA's CUDA gets the plain way, without pinning."""
    streams = TorchStreams(device)
    driver = _driver(device)
    enter = partial(torch.get_device_module(device).set_device, device)
    if driver is None:
        return Hardware(device.type, device, streams, None, False, None, enter)
    kernels = _has_cupy() and _same_addresses(driver, device)
    return Hardware(
        _name(device),
        device,
        streams,
        CudaCopier(driver, device),
        kernels,
        CudaRegistrar(driver),
        enter,
    )


def _driver(device: torch.device) -> CudaDriver | None:
    if device.type != "cuda" or torch.version.cuda is None:  # ROCm calls itself cuda too
        return None
    torch.cuda.synchronize(device)  # makes the context that the driver's calls need
    try:
        return CudaDriver()
    except OSError as exc:
        logger.warning("the CUDA driver cannot be called (%s): copies take torch's way", exc)
        return None


def _same_addresses(driver: CudaDriver, device: torch.device) -> bool:
    try:
        return driver.same_addresses(device.index or 0)
    except OSError as exc:
        logger.warning("the CUDA driver does not say what kernels reach (%s): none is used", exc)
        return False


def _has_cupy() -> bool:
    """Whether CuPy is there and works: a broken one raises anything."""
    try:
        importlib.import_module("cupy")
    except Exception as exc:
        logger.info("without CuPy (pip install 'kvtier[cuda]') small pages are slower: %s", exc)
        return False
    return True


def _name(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    which = getattr(properties, "uuid", device.index)  # two of a kind may hang on unlike links
    return f"{properties.name} {which} on {platform.node()}, torch {torch.__version__}"
