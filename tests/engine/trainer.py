"""A trainer's end of `/update_weights` without a network: vLLM loads this module in each worker, as its extension."""

from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine

BACKEND = "scaling"


class Extension:
    """What `--worker-extension-cls` names: importing it registers the backend."""


class ScalingEngine(WeightTransferEngine):  # type: ignore[misc] # vLLM has no types
    """Multiplies what goes into the attention of some layers by a factor."""

    init_info_cls = update_info_cls = dict

    def init_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Nothing."""

    def start_weight_update(self) -> None:
        """Nothing."""

    def finish_weight_update(self) -> None:
        """Nothing."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(update_info)

    def receive_weights(self, update_info: dict[str, Any]) -> None:
        names = [f"layers.{layer}.input_layernorm" for layer in update_info["layers"]]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if any(part in name for part in names):
                    parameter.mul_(update_info["factor"])

    def shutdown(self) -> None:
        """Nothing."""


WeightTransferEngineFactory.register_engine(BACKEND, ScalingEngine)
