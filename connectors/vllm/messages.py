"""What rides on vLLM's own metadata between the scheduler and every rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.v1.kv_offload.base import LoadStoreSpec

from kvtier.connectors.vllm.adapters import Loaded
from kvtier.connectors.vllm.load_trace import CopyTimes
from kvtier.connectors.vllm.looks import Looked
from kvtier.connectors.vllm.ranks import Hello
from kvtier.types import OpResult, Placed, ScanBatch, TierOp


class SlotSpec(LoadStoreSpec):
    """The arena's side of a load or store job: slots per KV-cache group, in chunk order.

    `plan` names the brain's plan, None when kvtier is off; a slot may be NO_SLOT in a load: that chunk is gone. What of a
    load is on its way into its slot is in `reads`: by position, the READ that brings it; it is waited for `patience_s`.
    """

    def __init__(
        self,
        plan: int | None,
        slots: tuple[tuple[int, ...], ...],
        reads: Mapping[int, int] = MappingProxyType({}),
        patience_s: float = 0.0,
    ) -> None:
        self.plan = plan
        self.slots = slots
        self.reads = dict(reads)
        self.patience_s = patience_s


@dataclass
class KVTierMetadata(OffloadingConnectorMetadata):
    """vLLM's jobs of one step and the brain's operations for every rank's I/O process."""

    ops: list[TierOp] = field(default_factory=list)
    fail_loads: bool = False  # a reset: every load in flight is of a cache that is gone
    spoiled: set[int] = field(default_factory=set)  # stores whose blocks may be overwritten already
    timed: int = 0  # the number of a step whose time says how fast the engine computes; 0: of none
    look: int = 0  # the number of a look at the live weights, taken in this step; 0: none
    adapters: int = 0  # the number of a step that computes with LoRA adapters; 0: it does not
    paths: list[str] = field(default_factory=list)
    """Of LoRA adapters: whether the files there are as they were read is to be found out with the look."""
    greet: bool = False  # not every rank has said hello: say it
    idle: bool = False  # nothing is computed in this step
    round: int = 0  # the number of a step with which tiers are asked; 0: none is

    @classmethod
    def of(cls, base: KVConnectorMetadata) -> "KVTierMetadata":
        """Pass on what vLLM's half says, whatever that is."""
        return cls(**vars(base))


@dataclass
class KVTierWorkerMetadata(OffloadingWorkerMetadata):
    """vLLM's finished jobs of one step and the answers of the ranks' I/O processes.

    Every rank always sends this class: vLLM's aggregation drops or refuses a mixture.
    No `__len__`, no `__bool__`: the aggregator tests for truth.
    """

    results: list[OpResult] = field(default_factory=list)
    scans: list[ScanBatch] = field(default_factory=list)
    failed: dict[int, set[int]] = field(default_factory=dict)
    """Job -> positions of its chunks (in job order) that did not make it on some rank."""
    broken: str = ""  # why a rank turned itself off
    timed: int = 0
    """The step that this comes with, if it is timed: without it there may be nothing to say."""
    placed: list[Placed] = field(default_factory=list)
    """Where the memory of each rank that is named here is; of the others nothing has changed."""
    io_seconds: dict[int, float] = field(default_factory=dict)
    """By rank, the processor time that its I/O process has had; of the others nothing is said."""
    looked: list[Looked] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    copied: list[CopyTimes] = field(default_factory=list)  # where anybody listens
    round: int = 0  # of the step that this comes with, as it was ordered

    @classmethod
    def of(cls, base: OffloadingWorkerMetadata | None, *, broken: str) -> "KVTierWorkerMetadata":
        """Pass on what vLLM's half says, and why ours is off."""
        return cls(**vars(base) if base is not None else {}, broken=broken)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "KVTierWorkerMetadata":
        theirs = other if isinstance(other, KVTierWorkerMetadata) else KVTierWorkerMetadata()
        failed = {job: set(positions) for job, positions in self.failed.items()}
        for job, positions in theirs.failed.items():
            failed.setdefault(job, set()).update(positions)
        return KVTierWorkerMetadata(
            **vars(super().aggregate(other)),
            results=self.results + theirs.results,
            scans=self.scans + theirs.scans,
            failed=failed,
            broken=self.broken or theirs.broken,
            timed=max(self.timed, theirs.timed),
            placed=self.placed + theirs.placed,
            io_seconds=self.io_seconds | theirs.io_seconds,
            looked=self.looked + theirs.looked,
            hellos=self.hellos + theirs.hellos,
            loaded=self.loaded + theirs.loaded,
            copied=self.copied + theirs.copied,
            round=max(self.round, theirs.round),
        )
