"""Where the time of a load goes, from vLLM's hit to the step that computes behind it; said at debug level only.

Times are of the monotonic clock, which all processes of a machine share.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vllm.logger import init_logger

from kvtier.connectors.vllm.copy_job import Copied
from kvtier.transfer.engine import Moved

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

    from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata

logger = init_logger("vllm.kvtier.loads")

_FOLLOWED = 1024  # loads; some are never scheduled


class CopyTimes(NamedTuple):
    """What one rank did for a load job, and when."""

    job: int
    nbytes: int
    worked: float  # seconds of copying
    announced: float  # the step that brought it
    submitted: float
    started: float
    copied: float
    reported: float


@dataclass(slots=True)
class Load:
    """One load under way."""

    request: str
    hit: float
    ordered: float
    seen: float = 0.0
    ranks: list[CopyTimes] = field(default_factory=list)

    def text(self, scheduled: float) -> str:
        """Say when the hit was and how many milliseconds later each thing happened, on the rank that was last."""
        last = max(self.ranks, key=lambda rank: rank.reported)
        times = last._asdict() | {"seen": self.seen, "scheduled": scheduled}
        job, nbytes, worked = (times.pop(name) for name in ("job", "nbytes", "worked"))
        steps = {"ordered": self.ordered, **times}.items()
        after = " ".join(f"{name}={(at - self.hit) * 1e3:.3f}" for name, at in steps)
        return (
            f"job={job} nbytes={nbytes} at={self.hit * 1e3:.3f} worked={worked * 1e3:.3f} {after}"
        )


class CopyTrace:
    """Notes when a rank does what for its loads, where anybody listens. The worker's main thread only."""

    def __init__(self) -> None:
        self.on = logger.isEnabledFor(logging.DEBUG)
        self._announced = 0.0
        self._jobs: dict[int, tuple[float, float]] = {}
        self._ended: list[CopyTimes] = []

    def announced(self) -> None:
        """Note that a step begins."""
        if self.on:
            self._announced = time.monotonic()

    def submitted(self, job: int) -> None:
        """Note that a load is handed to the transfer engine."""
        if self.on:
            self._jobs[job] = self._announced, time.monotonic()

    def reported(self, job: int, moved: Moved | None, copied: Sequence[Copied]) -> None:
        """Note that a load is over; of several copies, say when each was."""
        if (times := self._jobs.pop(job, None)) is None or moved is None or not copied:
            return
        ends = min(part.started for part in copied), copied[-1].ended, time.monotonic()
        self._ended.append(CopyTimes(job, moved.nbytes, moved.worked, *times, *ends))
        for part in copied if len(copied) > 1 else ():
            at = [f"{each * 1e3:.3f}" for each in part[1:]]
            said = "kvtier: copy of job=%d chunks=%s landed=%s started=%s copied=%s"
            logger.debug(said, job, ",".join(map(str, part.chunks)), *at)

    def take(self) -> list[CopyTimes]:
        """Take what is to be told."""
        ended, self._ended = self._ended, []
        return ended


class LoadTrace:
    """Follows every load, where anybody listens. EngineCore's main thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on = logger.isEnabledFor(logging.DEBUG)
        self._clock = clock
        self._hits: dict[str, float] = {}  # of this step, by request
        self._loads: dict[int, Load] = {}  # by job

    def hit(self, request: str) -> None:
        """Note that a request's hit is to be loaded."""
        if self.on:
            self._hits[request] = self._clock()

    def step(self, meta: "KVTierMetadata", output: "SchedulerOutput") -> None:
        """Note which loads a step orders; say of those whose request it computes where their time went."""
        if not self.on:
            return
        now, scheduled = self._clock(), output.num_scheduled_tokens
        for job in [job for job, load in self._loads.items() if load.request in scheduled]:
            if (load := self._loads.pop(job)).ranks:
                logger.debug("kvtier: load of %s: %s", load.request, load.text(now))
        for job, ordered in meta.load_jobs.items():
            self._loads[job] = Load(ordered.req_id, self._hits.get(ordered.req_id, now), now)
            if len(self._loads) > _FOLLOWED:
                del self._loads[next(iter(self._loads))]
        self._hits.clear()

    def hear(self, meta: "KVTierWorkerMetadata") -> None:
        """Take what the ranks say of the loads that are over."""
        for times in meta.copied:
            if (load := self._loads.get(times.job)) is not None:
                load.ranks.append(times)
                load.seen = self._clock()
