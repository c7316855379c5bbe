"""The connector of a model whose KV must not be reused: it stores nothing, loads nothing and says why."""

import logging
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from kvtier.brain import Why
from kvtier.connectors.vllm import validity
from kvtier.connectors.vllm.metrics import Meter
from kvtier.connectors.vllm.prompts import Prompts
from kvtier.connectors.vllm.returns import Returns

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


class NullConnector(KVConnectorBase_V1, SupportsHMA):
    """Stands in for `KVTierConnector` where `validity` objects. It has no memory, no I/O process and no guard to trip.

    vLLM's own half is not made either: it ends on such models, or drives loads that must not be.
    """

    def __init__(
        self,
        vllm_config: "VllmConfig",
        role: KVConnectorRole,
        kv_cache_config: "KVCacheConfig",
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._prompts = Prompts()
        self._meter = Meter(engine=self._prompts.stats)
        transfer = vllm_config.kv_transfer_config
        self._returns = Returns(transfer.engine_id if transfer else None)
        if role is KVConnectorRole.SCHEDULER:
            why = validity.objection(vllm_config, kv_cache_config)
            logger.warning("kvtier is off: %s. The engine runs as without it.", why)

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # EngineCore

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Nothing: no rank says hello."""

    def on_new_request(self, request: "Request") -> None:
        self._meter.refuse()

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return 0, False

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        self._prompts.admit(request, 0, None, Why.OFF)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self._returns.of(None, self._prompts.finished(request.request_id))

    def reset_cache(self) -> bool | None:
        return True

    def get_kv_connector_stats(self) -> "KVConnectorStats | None":
        if self.role is not KVConnectorRole.SCHEDULER:
            return None
        self._prompts.settle()
        return self._meter.off()

    # Workers

    def register_kv_caches(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        """Nothing: no page is ours to copy."""

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Nothing."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: "torch.Tensor",
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        """Nothing."""

    def wait_for_save(self) -> None:
        """Nothing."""


NullConnector.__name__ = "KVTierConnector"  # MultiConnector finds metrics by the class's name
