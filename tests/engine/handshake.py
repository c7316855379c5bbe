"""A connector that does nothing but shake hands as vLLM's for NIXL does: with words of its own, and with nobody else's."""

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    SupportsHMA,
)


@dataclass
class Payload(KVConnectorHandshakeMetadata):  # type: ignore[misc] # vLLM has no types
    """What its ranks say."""

    rank: int


class HandshakeConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Refuses the start where it hears what is not its own, as `NixlConnectorScheduler` does, and where it hears nothing."""

    heard = False

    def get_handshake_metadata(self) -> Payload:
        return Payload(self._vllm_config.parallel_config.rank)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        for said in metadata.values():
            if not isinstance(said, Payload):
                raise ValueError("expects its own payload for handshake metadata")  # noqa: TRY004 - as vLLM
        self.heard = bool(metadata)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        assert self.heard
        return KVConnectorMetadata()

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        return 0, False

    def update_state_after_alloc(
        self, request: Any, blocks: Any, num_external_tokens: int
    ) -> None: ...

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None: ...

    def wait_for_save(self) -> None: ...
