"""A disk that is slow as disks are: so many bytes a second, whoever asks and for whatever lies there."""

import threading
import time
from collections.abc import Sequence

import msgspec

from kvtier.tier import Bytes, Tier
from kvtier.tiers.wrappers import TierWrapper


class DiskConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes per second, of reads and writes together."""

    bytes_per_s: float


class SlowDisk(TierWrapper):
    """Let reads and writes take their turn for the bytes that they move."""

    Config = DiskConfig

    def __init__(self, inner: Tier, config: DiskConfig) -> None:
        super().__init__(inner)
        self._rate = config.bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        nbytes = super().read(key, bufs)
        self._take(nbytes)
        return nbytes

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        nbytes = super().write(key, bufs)
        self._take(nbytes)
        return nbytes

    def _take(self, nbytes: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + nbytes / self._rate
            wait_s = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait_s))
