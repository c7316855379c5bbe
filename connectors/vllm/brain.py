"""Builds the brain from the configuration, vLLM's KV-cache groups and the ranks' hellos."""

from typing import TYPE_CHECKING

from kvtier.assembly import assemble
from kvtier.brain import TieredCache
from kvtier.config import Config
from kvtier.connectors.vllm.ranks import Ranks
from kvtier.types import GroupSpec

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        SchedulerOffloadConfig,
    )


def build_brain(
    config: Config,
    vllm: "SchedulerOffloadConfig",
    ranks: Ranks,
    width: int,
) -> TieredCache:
    """Make the brain from the configuration of one rank. `width` is the model's hidden size."""
    groups = [
        GroupSpec(
            index=group.group_idx,
            chunk_tokens=group.tokens_per_chunk,
            window_chunks=group.sliding_window_size_in_chunks,
            nbytes=ranks.group_nbytes(group.group_idx),
        )
        for group in vllm.kv_group_configs
    ]
    return assemble(
        config,
        groups,
        ranks=len(ranks.hellos),
        even_tokens=6.0 * width,  # see Costs.prefill_s
    )
