"""The spec that vLLM's offloading connector builds its two halves from. Cheap to import: the API server does."""

from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvtier.connectors.vllm import metrics
from kvtier.connectors.vllm.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvtier.connectors.vllm.pages import Pages
    from kvtier.io_process.weights import Unread


class KVTierSpec(OffloadingSpec):
    """Names our manager and worker; `KVTierConnector` has set what vLLM reads before this is built.

    vLLM gives a spec less than `get_worker` needs: `Rank` adds what it learnt before.
    """

    def __init__(self, config: OffloadingConfig) -> None:
        from kvtier.connectors.vllm.ranks import Sharers

        super().__init__(config)
        self.guard = Guard()
        self.pages: Mapping[int, Pages | str] = {}
        """How each group fills its pages, or why that is not known."""
        self.sharers = Sharers(config.parallel.world_size)
        """With whom a rank shares its node."""
        self.unread: Unread | None = None
        """The weight files that this rank's I/O process is to read."""

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        return metrics.definitions()

    def get_manager(self) -> OffloadingManager:
        from kvtier.connectors.vllm.manager import TieredCacheManager

        return TieredCacheManager(self.guard)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        from kvtier.connectors.vllm.worker import KVTierWorker

        return KVTierWorker(
            self.config, kv_caches, self.pages, self.sharers, self.guard, self.unread
        )
