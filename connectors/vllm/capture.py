"""Capture of keys and values from a running vLLM, as its model computes them: what codecs are measured on.

For `worker_extension_cls="kvtier.connectors.vllm.capture:KvCapture"`; the engine runs as it always does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

_Write = Callable[..., None]


class KvCapture:
    """Adds two methods to vLLM's worker: `capture_kv`, then, after requests that ran one by one, `save_kv`."""

    def capture_kv(self: Any) -> int:
        """Keep what every layer writes into the KV cache from now on; return how many layers do."""
        layers = self.vllm_config.compilation_config.static_forward_context
        self._kvtier_written = {}
        for name, layer in layers.items():
            if write := getattr(getattr(layer, "impl", None), "do_kv_cache_update", None):
                kept: list[torch.Tensor] = []
                self._kvtier_written[name] = kept
                layer.impl.do_kv_cache_update = partial(_keep, kept, write)
        return len(self._kvtier_written)

    def save_kv(self: Any, path: str) -> list[int]:
        """Save what was kept as (k/v, layers, tokens, heads, head_dim), bf16 as its bits; return the shape."""
        layers = [torch.cat(kept, dim=1) for kept in self._kvtier_written.values()]
        whole = torch.stack(layers, dim=1).contiguous()
        bits = whole.view(torch.uint16) if whole.dtype == torch.bfloat16 else whole
        np.save(path, bits.numpy())
        for kept in self._kvtier_written.values():
            kept.clear()
        return list(whole.shape)


def _keep(
    kept: list[torch.Tensor],
    write: _Write,
    layer: torch.nn.Module,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    n = len(slot_mapping)
    kept.append(torch.stack([key[:n], value[:n]]).clone())
    write(layer, key, value, kv_cache, slot_mapping)
