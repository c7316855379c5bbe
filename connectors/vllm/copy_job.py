"""A job of vLLM's on one rank: the copies that carry it out, one transfer or several."""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.transfer.engine import ChunkCopy, Moved, Transfer

_NAP_S = 5e-4  # so much later an idle engine hears of a chunk that has landed

logger = logging.getLogger(__name__)


class CopyPart(NamedTuple):
    """One transfer of a job, the positions of its chunks in the job, and when it was submitted."""

    transfer: Transfer
    chunks: Sequence[int]
    submitted: float = 0.0


class Copied(NamedTuple):
    """When the copies of some chunks were asked for, began and ended; they had landed by the first."""

    chunks: Sequence[int]
    submitted: float
    started: float
    ended: float


@dataclass(slots=True, eq=False)
class CopyJob:
    """A load or a store. It is done when all of its transfers are; a chunk fails with its own transfer only.

    Chunks of a load may be `coming`: each is copied by a transfer of its own once it has landed. When the time for that
    is over, or nobody wants them any more, they are given up.
    """

    chunks: int
    blocks: tuple[int, ...] = ()  # a load's destination; empty for a store
    failed: set[int] = field(default_factory=set)  # positions of chunks that did not make it
    parts: list[CopyPart] = field(default_factory=list)
    coming: dict[int, tuple[int, ChunkCopy]] = field(default_factory=dict)
    """By READ, the position of a chunk and where it goes."""
    until: float = math.inf  # so long they are waited for
    given_up: list[int] = field(default_factory=list)  # READs
    lost: set[int] = field(default_factory=set)  # blocks of the chunks that did not come
    copied: list[Copied] = field(default_factory=list)

    def done(self) -> bool:
        """Whether every transfer is over, and none will follow."""
        copied = all(part.transfer.done() for part in self.parts)
        if self.coming and copied and time.monotonic() >= self.until:
            self.give_up()
        return copied and not self.coming

    def rest(self, seconds: float) -> None:
        """Leave the core to its first transfer that is under way, or to its reads, at most for so long."""
        for part in self.parts:
            if not part.transfer.done():
                part.transfer.rest(seconds)
                return
        if self.coming:
            time.sleep(min(seconds, _NAP_S))

    def give_up(self) -> None:
        """Wait for no read any more."""
        self.given_up += self.coming
        self.lose(list(self.coming))

    def lose(self, reads: Iterable[int]) -> None:
        """Let the chunks fail that these READs were to bring."""
        for op in reads:
            position, copy = self.coming.pop(op)
            self.failed.add(position)
            self.lost.update(block for block in copy.blocks if block is not None)

    def stop(self) -> None:
        """Start nothing more of it."""
        self.give_up()
        for part in self.parts:
            part.transfer.stop()

    def wait(self) -> None:
        """Wait for the device side of every transfer, and for no read; how each ended is in `result`."""
        self.give_up()
        for part in self.parts:
            try:
                part.transfer.result()
            except Exception:
                logger.debug("a copy failed; it is reported when its job is collected")

    def result(self) -> Moved:
        """Return what was moved; the chunks of a transfer that failed are added to `failed`."""
        moved: list[Moved] = []
        seconds = ended = 0.0
        for transfer, chunks, submitted in self.parts:
            try:
                each = transfer.result()
            except Exception:
                logger.exception("a copy of %d chunks failed", len(chunks))
                self.failed.update(chunks)
                continue
            over = submitted + each.seconds
            seconds += max(0.0, over - max(ended, submitted))  # they may run side by side
            ended = max(ended, over)
            moved.append(each)
            self.copied.append(Copied(chunks, submitted, submitted + each.waited, over))
        total = Moved(*map(sum, zip(Moved(0, 0.0), *moved, strict=True)))
        return total._replace(seconds=seconds)

    def fail(self) -> None:
        """Let every chunk fail."""
        self.failed.update(range(self.chunks))
