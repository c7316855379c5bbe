"""The roll call at the start: who of the ranks has said hello.

1. Each step asks, until all ranks have answered. A rank answers every question, and always the same: a hello that
   comes late or twice changes nothing, and none is lost for good.
2. All ranks answer a step together. Whoever is silent in three answers in a row either does not hear the question or
   has nobody to pass its answer on: no clock is needed, and a slow first step proves nothing.
3. Until all have answered the cache is an empty one, and requests wait for it: a few steps without work, once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.connectors.vllm.ranks import Hello
from kvtier.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, VllmConfig

_ANSWERS = 3


class RollCall:
    """Counts the questions and keeps the hellos. EngineCore's main thread."""

    def __init__(self, world_size: int, in_flight: int = 1) -> None:
        """Expect so many ranks to answer; the engine has at most `in_flight` steps whose answers it lacks."""
        self._world_size = world_size
        self._most = in_flight + _ANSWERS - 1
        self._asked = 0
        self._heard: dict[int, Hello] = {}

    @property
    def hellos(self) -> list[Hello]:
        """What was heard, by rank."""
        return [self._heard[rank] for rank in sorted(self._heard)]

    def ask(self) -> None:
        """Let one more step ask.

        Raises:
            ConfigError: some ranks are silent, and will be.
        """
        if self._asked >= self._most:
            silent = sorted(set(range(self._world_size)) - self._heard.keys())
            raise ConfigError(
                f"ranks {', '.join(map(str, silent))} of {self._world_size} have not said hello in {_ANSWERS} steps: "
                "what executes the model does not pass on what a connector says there"
            )
        self._asked += 1

    def hear(self, hellos: Sequence[Hello]) -> bool:
        """Take what ranks said; return whether all have spoken.

        Raises:
            ConfigError: a rank is not the one that it was.
        """
        for hello in hellos:
            if self._heard.setdefault(hello.rank, hello) != hello:
                raise ConfigError(f"rank {hello.rank} is not the one of the start")
        return len(self._heard) >= self._world_size


def steps_in_flight(vllm_config: "VllmConfig") -> int:
    """Say for how many steps at once vLLM may lack the answers."""
    ranks = vllm_config.parallel_config.pipeline_parallel_size
    return max(1, getattr(vllm_config, "max_concurrent_batches", ranks + 1))


def refuse_lone_ranks(parallel: "ParallelConfig") -> None:
    """Refuse an executor that gives each rank an EngineCore of its own, which hears of no other rank."""
    backend = parallel.distributed_executor_backend
    names = [cls.__name__ for cls in backend.__mro__] if isinstance(backend, type) else [backend]
    alone = {"external_launcher", "ExecutorWithExternalLauncher"}.intersection(names)
    if alone and parallel.world_size > 1:
        raise ConfigError(
            f"distributed_executor_backend: with {names[0]} each of the {parallel.world_size} ranks has an engine core "
            "of its own, and none can say when all of them hold a chunk; use mp or ray"
        )
