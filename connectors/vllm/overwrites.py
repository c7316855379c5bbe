"""Stores that come too late: whose blocks a step overwrites before it asks for their flush."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig


class Overwrites:
    """Says which stores read blocks that may hold something else by then.

    A store is submitted in the step after the one that computed its blocks; where that step gives the blocks
    to others, vLLM flushes the store first. Its second model runner begins the step with what it writes into
    new blocks (zeroes, copies on write, states of Mamba layers) and flushes after that.
    """

    def __init__(self, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
        from vllm.v1.kv_cache_interface import MambaSpec

        specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        self._flushes_late = bool(getattr(vllm_config, "use_v2_model_runner", False))
        self._moves_states = any(isinstance(spec, MambaSpec) for spec in specs)

    def spoiled(self, output: "SchedulerOutput", flushed: "Iterable[int] | None") -> set[int]:
        """Name the jobs among those flushed in this step whose blocks may be overwritten by then."""
        writes = (
            self._moves_states
            or getattr(output, "new_block_ids_to_zero", None)
            or getattr(output, "kv_cache_block_copies", None)
        )
        return set(flushed or ()) if self._flushes_late and writes else set()
