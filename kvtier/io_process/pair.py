"""A rank's I/O processes: one for what this machine has, one for the stores that engines share.

Whatever becomes of a store, of its client or of the network, reads of this machine's tiers go on beside it.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from kvtier.io_process.client import IoClient, IoSetup
from kvtier.registry import is_asked
from kvtier.types import OpKind, OpResult, Placed, ScanBatch, TierOp

_FAR_LEAVES_S = 0.5
_OF_ANOTHER = (OpKind.CANCEL, OpKind.HASTEN)  # they name an operation, not a tier


class IoPair:
    """Hand each operation to the process that has its tier. One thread; see `IoClient`.

    Stores that engines share come last among the tiers.
    """

    def __init__(
        self, setup: IoSetup, arena_fd: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = sum(not is_asked(str(tier["kind"])) for tier in setup.tiers)
        replace = msgspec.structs.replace
        near = replace(setup, tiers=setup.tiers[: self._own])
        far = replace(setup, tiers=setup.tiers[self._own :], weights=None)
        self.near = IoClient(near, arena_fd, clock) if near.tiers else None
        self.far = IoClient(far, arena_fd, clock) if far.tiers else None

    @property
    def placed(self) -> list[Placed]:
        """Where the memory of tiers is, as they last said: a store's is elsewhere."""
        return self.near.placed if self.near else []

    @property
    def pid(self) -> int | None:
        """Process id of the one for this machine's tiers, if there is one now."""
        return self.near.pid if self.near else None

    @property
    def pending(self) -> int:
        """How many operations are not answered yet."""
        return sum(client.pending for client in self._clients)

    def processor_seconds(self) -> float | None:
        """Return the processor time of both since they started; None if there is none now."""
        found = [client.processor_seconds() for client in self._clients]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if known else None

    def wait_ready(self) -> None:
        """Wait for the start of both; see `IoClient.wait_ready`."""
        for client in self._clients:
            client.wait_ready()

    def submit(self, ops: Sequence[TierOp]) -> None:
        """Queue operations, and send what goes without waiting."""
        if self.far is None or self.near is None:
            for client in self._clients:
                client.submit(ops)
            return
        mine: list[TierOp] = []
        theirs: dict[int, TierOp] = {}
        for op in ops:
            beyond = op.tier > self._own
            if op.kind in _OF_ANOTHER:
                beyond = op.target in theirs or self.far.awaits(op.target)
            if beyond:
                theirs[op.op] = op._replace(tier=max(0, op.tier - self._own))
            else:
                mine.append(op)
        if mine:
            self.near.submit(mine)
        if theirs:
            self.far.submit(list(theirs.values()))

    def poll(self) -> list[OpResult | ScanBatch]:
        """Return what came in."""
        return [answer for client in self._clients for answer in client.poll()]

    def close(self, timeout_s: float = 1.0) -> None:
        """Let both finish what they have in hand, for a moment; idempotent."""
        if self.near:
            self.near.close(timeout_s)
        if self.far:
            self.far.close(_FAR_LEAVES_S)

    @property
    def _clients(self) -> list[IoClient]:
        return [client for client in (self.near, self.far) if client]
