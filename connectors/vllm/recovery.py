"""How vLLM goes on from a load that failed in part."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig


def by_blocks(kv_cache_config: "KVCacheConfig") -> bool:
    """Whether a request may go on from the blocks before a bad one: one group, that keeps all blocks of a prefix.

    Of several groups block ids are ambiguous. Of a window or a state nothing is on the device before the blocks that
    were loaded: vLLM would take those for computed.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    if len(kv_cache_config.kv_cache_groups) > 1:
        return False
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = getattr(spec, "kv_cache_specs", {"": spec}).values()
    return all(isinstance(layer, FullAttentionSpec) for layer in layers)
