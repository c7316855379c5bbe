"""What NVIDIA's management library says of the GPUs, where it is there: names, memory, and what their slots give."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from kvtier.topology.pci import Link

# Giga-transfers per second by PCIe generation.
_GT_S = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}

_WORDS = 16  # of 64 nodes each


class Card(NamedTuple):
    """One NVIDIA GPU; None: the driver does not say, as of a GPU that is shared out to virtual machines."""

    address: str  # 0000:17:00.0, as in /sys
    name: str
    nbytes: int | None
    node: int | None  # whose memory is nearest
    generation: int | None  # of PCIe, now; an idle GPU lowers it
    slot_generation: int | None  # at most, of the GPU where it is plugged in
    own_generation: int | None  # at most, of the GPU by itself
    width: int | None  # lanes now
    max_width: int | None

    @property
    def link(self) -> Link | None:
        """Its link as /sys would describe it, but for what its slot does not give; None: not told."""
        speeds = [_GT_S.get(each or 0) for each in (self.generation, self.slot_generation)]
        if speeds[0] and speeds[1] and self.width and self.max_width:
            return Link(speeds[0], self.width, speeds[1], self.max_width)
        return None


class Nvml(NamedTuple):
    """Every GPU that NVML shows, or why there is none to show."""

    cards: tuple[Card, ...] = ()
    driver: str = ""
    error: str = ""


def ask_nvml(library: ModuleType | None = None) -> Nvml:
    """Ask NVML through its Python binding, by default nvidia-ml-py; a failure is an answer in words."""
    try:
        nvml = library or importlib.import_module("pynvml")
    except ImportError:
        return Nvml(error="nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as exc:
        return Nvml(error=str(exc))
    try:
        count = nvml.nvmlDeviceGetCount()
        cards = tuple(_card(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count))
        return Nvml(cards, nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as exc:
        return Nvml(error=str(exc))
    finally:
        nvml.nvmlShutdown()


def _card(nvml: ModuleType, handle: object) -> Card:
    def ask(call: Callable[[object], int]) -> int | None:
        try:
            return call(handle)
        except nvml.NVMLError:
            return None

    def nbytes(handle: object) -> int:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)

    def nodes(handle: object) -> int:
        words = nvml.nvmlDeviceGetMemoryAffinity(handle, _WORDS, nvml.NVML_AFFINITY_SCOPE_NODE)
        return sum(word << 64 * i for i, word in enumerate(words))

    domain, _, rest = nvml.nvmlDeviceGetPciInfo(handle).busId.partition(":")
    return Card(
        address=f"{domain[-4:]}:{rest}".lower(),
        name=nvml.nvmlDeviceGetName(handle),
        nbytes=ask(nbytes),
        node=_only_bit(ask(nodes) or 0),
        generation=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
        slot_generation=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
        own_generation=ask(nvml.nvmlDeviceGetGpuMaxPcieLinkGeneration),
        width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth),
        max_width=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth),
    )


def _only_bit(mask: int) -> int | None:
    return mask.bit_length() - 1 if mask.bit_count() == 1 else None
