"""The arena: one rank's slots, tier 0. One anonymous shared mapping that the I/O process inherits.

A memfd has no name in any file system, so nothing of it can outlive the processes that hold it.
"""

from collections.abc import Sequence

from kvtier.errors import ConfigError
from kvtier.memory.prefault import Prefault
from kvtier.memory.region import Region
from kvtier.tier import Bytes
from kvtier.types import PAGE


class Arena(Region):
    """`slots` pieces of `slot_nbytes` bytes (a multiple of 4 KiB) behind one file descriptor.

    Who may touch a slot, and when, is the brain's to say; there is no lock here. Pages are taken from
    the system when a slot is first written, or by `prefault`; from `nodes` where the kernel lets us say so.
    `owner` names what it belongs to, the same for all ranks.
    """

    def __init__(
        self, slots: int, slot_nbytes: int, nodes: Sequence[int] = (), owner: str = ""
    ) -> None:
        if slot_nbytes % PAGE:
            raise ValueError(f"slot_nbytes {slot_nbytes} is not a multiple of {PAGE}")
        if slots < 1:
            raise ConfigError(
                f"tiers[0].capacity: no room for one chunk of {slot_nbytes} bytes; make it larger"
            )
        self.slots = slots
        self.slot_nbytes = slot_nbytes
        self.nbytes = slots * slot_nbytes
        self._prefault: Prefault | None = None
        super().__init__(self.nbytes, nodes, shared=True, owner=owner)

    def slot(self, index: int) -> Bytes:
        """View one slot, shape (slot_nbytes,)."""
        start = index * self.slot_nbytes
        return self.bytes[start : start + self.slot_nbytes]

    def prefault(self, threads: int) -> None:
        """Begin to take every page from the system, in the background; once."""
        assert self._prefault is None
        self._prefault = Prefault(self.bytes, threads, bound=bool(self.nodes))

    def located(self) -> list[tuple[int, int]]:
        """Return NUMA nodes and the bytes on each."""
        return self.locate().spread(self.nbytes)

    def close(self) -> None:
        if self._prefault is not None:
            self._prefault.stop()
        super().close()
