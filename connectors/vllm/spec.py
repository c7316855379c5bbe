"""The spec that vLLM's offloading connector builds its two halves from. Cheap to import: the API server does."""

from typing import Any

from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
)

from kvtier.connectors.vllm import metrics


class KVTierSpec(OffloadingSpec):
    """Names our manager and worker; `KVTierConnector` has set what vLLM reads before this is built."""

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        return metrics.definitions()

    def get_manager(self) -> OffloadingManager:
        from kvtier.connectors.vllm.manager import TieredCacheManager

        return TieredCacheManager()

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        from kvtier.connectors.vllm.worker import KVTierWorker

        return KVTierWorker(self.config, kv_caches)
