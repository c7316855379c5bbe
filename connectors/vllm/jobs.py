"""The loads and stores under way: a plan of the brain becomes a job of vLLM, and ends when every rank has done it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from kvtier.connectors.vllm.load_trace import LoadTrace
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata, SlotSpec
from kvtier.types import BlockKey

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(slots=True)
class Job:
    """A load or store that the ranks carry out."""

    plan: int
    keys: tuple[BlockKey, ...]
    ranks_left: int
    adapter: bytes | None = None  # what `Adapters` calls the LoRA adapter of what it stores
    request: str = ""  # whose load it is
    failed: set[int] = field(default_factory=set)

    def failed_keys(self) -> list[BlockKey]:
        """List the keys whose copies failed on any rank."""
        return [self.keys[i] for i in self.failed]


class Jobs:
    """The plans that vLLM has not made a job of yet, and the jobs that not every rank has done. EngineCore's main thread only."""

    def __init__(self) -> None:
        self.planned: dict[int, tuple[tuple[BlockKey, ...], bytes | None]] = {}
        self.live: dict[int, Job] = {}
        self.trace = LoadTrace()

    def plan(self, plan: int, keys: tuple[BlockKey, ...], adapter: bytes | None = None) -> None:
        """Note the keys of a plan, and whose weights they were computed with."""
        self.planned[plan] = keys, adapter

    def begin(self, meta: KVTierMetadata, ranks: int, output: "SchedulerOutput") -> None:
        """Adopt the jobs of a step, which all `ranks` are to do."""
        self.trace.step(meta, output)
        for job_id, job in chain(meta.load_jobs.items(), meta.store_jobs.items()):
            spec = job.src_spec if job_id in meta.load_jobs else job.dst_spec
            if isinstance(spec, SlotSpec) and spec.plan is not None:
                keys, adapter = self.planned.pop(spec.plan)
                loading = job.req_id if job_id in meta.load_jobs else ""
                self.live[job_id] = Job(spec.plan, keys, ranks, adapter, loading)

    def end(self, meta: KVTierWorkerMetadata) -> Iterator[Job]:
        """Take what the ranks report; give each job that every rank has done now."""
        self.trace.hear(meta)
        for job_id, positions in meta.failed.items():
            if job_id in self.live:
                self.live[job_id].failed |= positions
        for job_id, ranks in meta.completed_jobs.items():
            if (job := self.live.get(job_id)) is None:
                continue
            job.ranks_left -= ranks
            if job.ranks_left <= 0:
                del self.live[job_id]
                yield job
