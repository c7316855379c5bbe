"""What a request may do: by the engine's `kv_role`, by its own hints and `kv_load_tiers`, by its adapter and media."""

from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.kv_offload.base import Locality, Medium, TierFilter

from kvtier.brain import Why
from kvtier.config import Config
from kvtier.connectors.vllm.hints import Hints, comes_from_elsewhere
from kvtier.connectors.vllm.media import MediaNames
from kvtier.registry import is_asked

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

_MEDIUM = {"dram": Medium.CPU, "memory": Medium.CPU}
"""By kind of tier; every other kind is storage."""


class Permission(NamedTuple):
    """What one request may do."""

    no_store: Why | None = None  # why nothing that it computes is kept
    no_load: Why | None = None  # why it uses nothing that was kept
    reads: bool = True  # chunks may be read up for it
    persist: bool = True  # what it computes may leave DRAM


class Permissions:
    """Gives requests their permission. A producer stores and never loads, a consumer loads and never stores."""

    def __init__(self, config: Config, vllm_config: "VllmConfig", media: MediaNames) -> None:
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        self._no_store = None if transfer.is_kv_producer else Why.ROLE
        self._no_load = None if transfer.is_kv_consumer else Why.ROLE
        self._persist_lora = config.persist_lora
        self._media = media
        self._tiers = [_MEDIUM.get(tier.kind, Medium.STORAGE) for tier in config.tiers]
        self._where = [
            Locality.REMOTE if i and is_asked(tier.kind) else Locality.LOCAL
            for i, tier in enumerate(config.tiers)
        ]

    def of(self, request: "Request", hints: Hints) -> Permission:
        """Return what a request with these hints may do."""
        no_load = self._no_load or (None if hints.load else Why.HINT)
        lora = request.lora_request is None or self._persist_lora
        return Permission(
            self._no_store or (None if hints.store else Why.HINT),
            no_load,
            reads=no_load is None
            and not (request.skip_reading_prefix_cache or comes_from_elsewhere(request)),
            persist=hints.persist and lora and self._media.last(request.mm_features),
        )

    def on_disk(self, tier: int) -> bool:
        """Whether a tier is no memory."""
        return self._tiers[tier] is Medium.STORAGE

    def tiers(self, wanted: TierFilter) -> list[int]:
        """List the tiers that a request wants to load from; all but stores that engines share are this engine's own."""
        found = enumerate(zip(self._tiers, self._where, strict=True))
        return [i for i, (at, where) in found if wanted.allows(at, where)]
