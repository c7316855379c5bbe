"""What a device offers to a transfer engine: streams, pinning, copies by address, and what they are called."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from kvtier.transfer.paths import Copier, Path
from kvtier.transfer.pinning import Registrar
from kvtier.transfer.streams import Streams


class Hardware(NamedTuple):
    """One device. Without a copier only the plain way is there; without a registrar nothing is pinned."""

    name: str  # of the device and of the software that drives it; calibrations are kept under it
    device: torch.device
    streams: Streams
    copier: Copier | None
    kernels: bool  # whether the copier has its kernel
    registrar: Registrar | None
    enter_thread: Callable[[], None]  # makes the device the calling thread's own

    def paths(self, pinned: bool) -> tuple[Path, ...]:
        """List the ways that work: addresses of memory that is not pinned are torch's business alone."""
        if self.copier is None or not pinned:
            return (Path.PLAIN,)
        if not self.kernels:
            return (Path.BATCHED, Path.PLAIN)
        return tuple(Path)
