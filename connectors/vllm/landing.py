"""What loads of one rank wait for: reads under way, whose chunks are copied as they land."""

import time
from collections.abc import Callable, Mapping, Sequence

from kvtier.connectors.vllm.copy_job import CopyJob, CopyPart
from kvtier.transfer.engine import ChunkCopy, Transfer
from kvtier.types import OpResult, OpStatus, ScanBatch

_REMEMBERED = 4096  # answers, and as many before these: where steps overlap, one is here before the load that needs it


class Landings:
    """Starts a copy when this rank's own read of the chunk was answered. The worker's main thread only.

    A chunk whose read failed, or was not answered when the job's time is over, has failed: its blocks are invalid.
    """

    def __init__(
        self,
        poll: Callable[[], list[OpResult | ScanBatch]],
        onload: Callable[[Sequence[ChunkCopy]], Transfer],
        *,
        overlap: bool = True,
    ) -> None:
        """Hear the I/O process with `poll`, and start copies with `onload`; without `overlap` no load waits for a read."""
        self._overlap = overlap
        self._poll = poll
        self._onload = onload
        self._unreported: list[OpResult | ScanBatch] = []
        self._waiting: dict[int, list[CopyJob]] = {}  # by READ
        self._answers: dict[int, bool] = {}
        self._older: dict[int, bool] = {}

    def __bool__(self) -> bool:
        """Whether any load waits for a read."""
        return bool(self._waiting)

    def begin(self, job: CopyJob, reads: Mapping[int, int], copies: Sequence[ChunkCopy]) -> None:
        """Let a load wait for these READs, by the position of the chunk; some may have been answered."""
        job.coming = {op: (i, copies[i]) for i, op in reads.items()}
        known = {op: ok for op in job.coming if (ok := self._known(op)) is not None}
        for op in job.coming.keys() - known.keys():
            self._waiting.setdefault(op, []).append(job)
        self._start(job, known)

    def take(self) -> list[OpResult | ScanBatch]:
        """Hear the I/O process; take all that it has said since the last call."""
        self.hear()
        taken, self._unreported = self._unreported, []
        return taken

    def hear(self) -> None:
        """Take what the I/O process says, and start the copies that it allows."""
        answers = self._poll()
        self._unreported += answers
        if not self._overlap:
            return
        found = {a.op: a.status is OpStatus.OK for a in answers if isinstance(a, OpResult)}
        if len(self._answers) > _REMEMBERED:
            self._older, self._answers = self._answers, {}
        self._answers |= found
        if not self._waiting:
            return
        for job in dict.fromkeys(job for op in found for job in self._waiting.pop(op, ())):
            self._start(job, found)

    def forget(self, job: CopyJob) -> None:
        """Forget a load that is over."""
        for op in job.given_up:
            if jobs := self._waiting.get(op):
                jobs.remove(job)
                if not jobs:
                    del self._waiting[op]

    def _start(self, job: CopyJob, answered: Mapping[int, bool]) -> None:
        """Copy the chunks whose reads went well, unless the job has given them up."""
        here = job.coming.keys() & answered.keys()
        job.lose([op for op in here if not answered[op]])
        landed = [(op, *job.coming[op]) for op in job.coming if op in here]
        if not landed:
            return
        try:
            transfer = self._onload([copy for _, _, copy in landed])
        except BaseException:
            job.lose([op for op, _, _ in landed])
            raise
        job.parts.append(CopyPart(transfer, [i for _, i, _ in landed], time.monotonic()))
        for op, _, _ in landed:
            del job.coming[op]

    def _known(self, op: int) -> bool | None:
        return self._answers.get(op, self._older.get(op))
