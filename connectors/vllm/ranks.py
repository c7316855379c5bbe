"""The ranks of an engine: what each says at its start, whether they agree, and how many share a node.

Capacities are per engine and node. Each rank takes its share by its own node and says so; the brain goes by the least.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kvtier import topology
from kvtier.connectors.vllm.weights import Weights
from kvtier.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import ParallelConfig

_ENGINE = re.compile(r"_dp(\d+)$")
_PLACED_BY_VLLM = ("mp", "uni")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a rank tells the brain in the engine's first steps; all but `rank`, `local_ranks`, `slots`, the sizes and the weights' name must agree."""

    rank: int
    local_ranks: int  # of this engine on the rank's node: each takes its share there
    copies: bool = False  # all of them have the same KV
    slots: int
    group_nbytes: dict[int, int]  # raw bytes of one chunk of each group on this rank
    pages: dict[int, tuple[int, ...]]  # per group: page bytes of each tensor
    arranged: dict[int, tuple[str, ...]]  # per group: which backend fills those pages, and how
    device: str
    config_digest: str
    blocks_per_chunk: int
    weights: Weights | None  # None: the first rank of the node looks for all

    @property
    def arena_nbytes(self) -> int:
        """Bytes of the rank's tier 0, whole slots and pages aside."""
        return self.slots * max(self.group_nbytes.values())


@dataclass(frozen=True, slots=True)
class Ranks:
    """All ranks of one engine, as they were at its start. What one of them lacks, the brain goes without."""

    hellos: tuple[Hello, ...]

    @property
    def local_ranks(self) -> int:
        """Ranks on the node that has most of them: there a rank's share is the smallest."""
        return max(hello.local_ranks for hello in self.hellos)

    @property
    def copies(self) -> bool:
        """Whether all ranks have the same KV."""
        return all(hello.copies for hello in self.hellos)

    @property
    def slots(self) -> int:
        """Slots that every rank has."""
        return min(hello.slots for hello in self.hellos)

    @property
    def arena_nbytes(self) -> int:
        """Bytes of the smallest arena."""
        return min(hello.arena_nbytes for hello in self.hellos)

    def group_nbytes(self, group: int) -> int:
        """Raw bytes of one chunk of a group on the rank that has the largest."""
        return max(hello.group_nbytes[group] for hello in self.hellos)


class Sharers(NamedTuple):
    """Who share a rank's node, the rank and its engine included."""

    ranks: int = 1  # of one engine: they share its capacities
    engines: int = 1  # data-parallel ones, each with capacities of its own

    @property
    def processes(self) -> int:
        """Ranks of all engines."""
        return self.ranks * self.engines


class DataParallel(Protocol):
    """What vLLM's configurations of parallelism have in common."""

    @property
    def data_parallel_index(self) -> int:
        """Which of them."""

    @property
    def data_parallel_size(self) -> int:
        """How many."""


def agree(hellos: Sequence[Hello], config_digest: str) -> Ranks:
    """Take the hellos of all ranks, which have to run the same thing.

    Raises:
        ConfigError: says what differs.
    """
    if any(hello.config_digest != config_digest for hello in hellos):
        raise ConfigError("the configuration file changed during the start; start again")
    agreed = {
        "whether all have the same KV": {str(hello.copies) for hello in hellos},
        "blocks_per_chunk": {str(hello.blocks_per_chunk) for hello in hellos},
        "weights": {hello.weights.sample for hello in hellos if hello.weights},
    }
    for what, values in agreed.items():
        if len(values) > 1:
            raise ConfigError(f"ranks disagree on {what}: {sorted(values)}")
    return Ranks(tuple(hellos))


def sharers(engine_id: str | None, parallel: "ParallelConfig") -> Sharers:
    """Find out, on a rank, with whom it shares its node."""
    ranks = local_ranks(parallel)
    engine = engine_of(engine_id, parallel)
    return Sharers(ranks, engines_here(parallel.data_parallel_size_local, engine, ranks))


def local_ranks(parallel: "ParallelConfig") -> int:
    """Count the ranks of this engine on this node.

    vLLM's own executors start `local_world_size` ranks on each node. Ray, an external launcher and executors that
    are not vLLM's place ranks as they like, and a rank takes its memory before anybody can know where the others
    are: any number of them may be here, so all are counted. Where they are on several nodes, each takes less than
    it could, and no node ever gives more than the capacity. The number of devices that a process sees is no
    source, because a rank may be shown only its own.
    """
    everywhere = parallel.world_size
    if getattr(parallel, "distributed_executor_backend", None) not in _PLACED_BY_VLLM:
        return everywhere
    here: int = getattr(parallel, "local_world_size", everywhere)
    return max(1, here)


def looks_at_weights(parallel: "ParallelConfig", sharers: Sharers) -> bool:
    """Whether this rank looks at the weight files: the first of each node, or all where nobody knows which that is."""
    placed = getattr(parallel, "distributed_executor_backend", None) in _PLACED_BY_VLLM
    return not placed or parallel.rank % sharers.ranks == 0


def engine_of(engine_id: str | None, parallel: DataParallel) -> int | None:
    """Say which of several data-parallel engines this is; None: the only one.

    vLLM turns each engine of a dense model into the only one of its own, in all but its name.
    """
    if named := _ENGINE.search(engine_id or ""):
        return int(named[1])
    return parallel.data_parallel_index if parallel.data_parallel_size > 1 else None


def engines_here(configured: int, engine: int | None, ranks: int) -> int:
    """Count the engines of this node; where vLLM forgot how many were configured, as many as its GPUs make."""
    if engine is None or configured > 1:
        return max(1, configured)
    gpus = len(topology.ask_nvml().cards) or len(topology.gpus())
    return max(1, gpus // ranks)


def owner_of(engine_id: str | None) -> str:
    """Name what all ranks of all data-parallel engines of one server belong to."""
    return _ENGINE.sub("", engine_id or "")
