"""Builds the brain from the configuration, vLLM's KV-cache groups and the ranks' hellos."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.assembly import assemble
from kvtier.brain import TieredCache
from kvtier.config import Config
from kvtier.connectors.vllm.messages import Hello
from kvtier.types import GroupSpec

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        SchedulerOffloadConfig,
    )


def build_brain(
    config: Config,
    vllm: "SchedulerOffloadConfig",
    hellos: Sequence[Hello],
    *,
    local_ranks: int,
    width: int,
) -> TieredCache:
    """Make the brain; `local_ranks` ranks share the capacity of each tier. `width` is the model's hidden size."""
    groups = [
        GroupSpec(
            index=group.group_idx,
            chunk_tokens=group.tokens_per_chunk,
            window_chunks=group.sliding_window_size_in_chunks,
            nbytes=max(hello.group_nbytes[group.group_idx] for hello in hellos),
        )
        for group in vllm.kv_group_configs
    ]
    return assemble(
        config,
        groups,
        ranks=len(hellos),
        local_ranks=local_ranks,
        even_tokens=6.0 * width,  # see Costs.prefill_s
    )
