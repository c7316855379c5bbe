"""What EngineCore's half knows of the weights that the engine computes with, and of whose KV vLLM's own cache may hold."""

import logging
from typing import TYPE_CHECKING

from kvtier.connectors.vllm import core_calls
from kvtier.connectors.vllm.device_cache import DeviceCache
from kvtier.connectors.vllm.looks import Looks

if TYPE_CHECKING:
    from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata

logger = logging.getLogger(__name__)


class Watch:
    """Orders the looks of the ranks, and hears of what makes one due. EngineCore's main thread only."""

    def __init__(self, ranks: int) -> None:
        self.looks = Looks(ranks)
        self.device = DeviceCache(self.looks)
        core_calls.listen("collective_rpc", self.looks.suspect)

    def order(self, meta: "KVTierMetadata", *, computes: bool) -> None:
        """End the making of a step: let the ranks look, if it is time to."""
        meta.look = self.looks.order(computes=computes)

    def hear(self, meta: "KVTierWorkerMetadata") -> None:
        """Take what the ranks have seen."""
        self.looks.heard(meta.looked)

    def reset(self, *, emptied: bool, noticed: bool) -> None:
        """Note that kvtier is empty. Unless it was `noticed` that weights were changed, nobody knows what they are now."""
        self.device.clean = emptied
        if noticed:
            return
        self.looks.forgotten()
        if not emptied:
            logger.warning(
                "kvtier: reset while requests hold KV; storing nothing until a reset succeeds"
            )
