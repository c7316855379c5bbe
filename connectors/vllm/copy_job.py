"""A job of vLLM's on one rank: the copies that carry it out, one transfer or several."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.transfer.engine import Moved, Transfer

logger = logging.getLogger(__name__)


class CopyPart(NamedTuple):
    """One transfer of a job, and the positions of its chunks in the job."""

    transfer: Transfer
    chunks: Sequence[int]


@dataclass(slots=True)
class CopyJob:
    """A load or a store. It is done when all of its transfers are; a chunk fails with its own transfer only."""

    chunks: int
    blocks: tuple[int, ...] = ()  # a load's destination; empty for a store
    failed: set[int] = field(default_factory=set)  # positions of chunks that did not make it
    parts: list[CopyPart] = field(default_factory=list)

    def done(self) -> bool:
        """Whether every transfer is over."""
        return all(part.transfer.done() for part in self.parts)

    def rest(self, seconds: float) -> None:
        """Leave the core to its first transfer that is under way, at most for so long."""
        for part in self.parts:
            if not part.transfer.done():
                part.transfer.rest(seconds)
                return

    def stop(self) -> None:
        """Start nothing more of it."""
        for part in self.parts:
            part.transfer.stop()

    def wait(self) -> None:
        """Wait for the device side of every transfer; how each ended is in `result`."""
        for part in self.parts:
            try:
                part.transfer.result()
            except Exception:
                logger.debug("a copy failed; it is reported when its job is collected")

    def result(self) -> Moved:
        """Return what was moved; the chunks of a transfer that failed are added to `failed`."""
        moved: list[Moved] = []
        for part in self.parts:
            try:
                moved.append(part.transfer.result())
            except Exception:
                logger.exception("a copy of %d chunks failed", len(part.chunks))
                self.failed.update(part.chunks)
        return Moved(*map(sum, zip(Moved(0, 0.0), *moved, strict=True)))

    def fail(self) -> None:
        """Let every chunk fail."""
        self.failed.update(range(self.chunks))
