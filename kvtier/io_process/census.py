"""Where the memory of an I/O process's tiers is, told to its worker when that has changed."""

import time
from collections.abc import Callable, Sequence

from kvtier.io_process import wire
from kvtier.io_process.records import Records
from kvtier.io_process.wire import FrameKind
from kvtier.types import Placed

_EVERY_S = 10.0


class Census:
    """Look every now and then. Main thread only; a look is a system call over a sample of pages."""

    def __init__(
        self,
        rank: int,
        tiers: Sequence[Records],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._tiers = tiers
        self._clock = clock
        self._due = clock()
        self._told: list[Placed] = []

    @property
    def patience_s(self) -> float:
        """Seconds until the next look is due."""
        return max(0.0, self._due - self._clock())

    def news(self) -> bytes:
        """Encode what has changed since the last look; nothing where it is not due."""
        if self._clock() < self._due:
            return b""
        found = [
            Placed(self._rank, tier, node, nbytes)
            for tier, lower in enumerate(self._tiers, 1)
            for node, nbytes in lower.located()
        ]
        self._due = self._clock() + _EVERY_S
        if found == self._told:
            return b""
        self._told = found
        return wire.frame(FrameKind.PLACED, found)
