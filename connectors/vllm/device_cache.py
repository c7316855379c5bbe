"""What is known of vLLM's own cache on the device: whether it may hold KV of before a reset of kvtier."""

from typing import TYPE_CHECKING

from kvtier.connectors.vllm import core_calls

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

    from kvtier.connectors.vllm.adapters import Adapters
    from kvtier.connectors.vllm.looks import Looks


class DeviceCache:
    """Hears of every reset of the device's cache, with kvtier or without. EngineCore's main thread only."""

    def __init__(self, looks: "Looks", adapters: "Adapters") -> None:
        self.clean = True  # what a request finds in it may be stored
        self.pool: BlockPool | None = None
        self._looks, self._adapters = looks, adapters
        core_calls.listen("reset_prefix_cache", self._was_reset)

    def empty(self) -> bool:
        """Whether it holds nothing, and no request does, after vLLM has tried to reset it."""
        pool = self.pool
        return pool is not None and pool.get_num_free_blocks() == pool.num_gpu_blocks - 1

    def forgotten(self, *, emptied: bool) -> None:
        """Note that kvtier is empty."""
        self.clean = emptied
        if emptied:
            self._adapters.reset()

    def _was_reset(self, _: object, emptied: object) -> None:
        if not emptied:
            return
        if not self.clean:  # and since then nothing was stored
            self._adapters.reset()
        self.clean = True
        self._looks.emptied()
