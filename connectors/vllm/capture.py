"""Capture of keys and values from a real vLLM run, as the model computes them: what codecs are measured on.

`python -m kvtier.connectors.vllm.capture MODEL OUT.npy [TEXT...]` runs files of text through the model.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

_Write = Callable[..., None]

TOKENS = 3072
"""Of each text at most so many tokens are captured, so that a large file does not fill the memory."""
TEXTS = ("argparse", "tarfile", "typing")
"""Modules of Python's own whose sources are read where nothing else is given."""


class KvCapture:
    """Adds two methods to vLLM's worker: `capture_kv`, then, after requests that ran one by one, `save_kv`.

    For `worker_extension_cls`; the engine runs as it always does.
    """

    def capture_kv(self: Any) -> int:
        """Keep what every layer writes into the KV cache from now on; return how many layers do."""
        layers = self.vllm_config.compilation_config.static_forward_context
        self._kvtier_written = {}
        for name, layer in layers.items():
            if hasattr(layer, "impl") and hasattr(layer.impl, "do_kv_cache_update"):
                kept: list[torch.Tensor] = []
                self._kvtier_written[name] = kept
                write = layer.impl.do_kv_cache_update
                layer.impl.do_kv_cache_update = partial(_keep, kept, write)
        return len(self._kvtier_written)

    def save_kv(self: Any, path: str) -> list[int]:
        """Save what was kept as (k/v, layers, tokens, heads, head_dim), bf16 as its bits; return the shape."""
        layers = [torch.cat(kept, dim=1) for kept in self._kvtier_written.values()]
        whole = torch.stack(layers, dim=1).contiguous().cpu()
        bits = whole.view(torch.uint16) if whole.dtype == torch.bfloat16 else whole
        np.save(path, bits.numpy())
        for kept in self._kvtier_written.values():
            kept.clear()
        return list(whole.shape)


def capture(model: str, out: Path, texts: Sequence[str], tokens: int = TOKENS) -> list[int]:
    """Run each text alone through a vLLM engine of its own and save keys and values as bf16; return the shape.

    Blocks for as long as an engine takes to start, and to compute the texts.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=tokens + 128,
        max_num_seqs=1,
        enable_prefix_caching=False,
        worker_extension_cls="kvtier.connectors.vllm.capture.KvCapture",
    )
    llm.collective_rpc("capture_kv")
    tokenizer = llm.get_tokenizer()
    params = SamplingParams(max_tokens=1, temperature=0.0)
    for text in texts:
        prompt = tokenizer.encode(text)[:tokens]
        llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    shape, *_ = llm.collective_rpc("save_kv", args=(str(out.absolute()),))
    return list(shape)


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


def main(model: str, out: str, *files: str) -> None:
    """Capture and say the shape."""
    found = files or [importlib.import_module(name).__file__ or "" for name in TEXTS]
    print(*capture(model, Path(out), [Path(file).read_text() for file in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
