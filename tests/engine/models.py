"""Small models made on the spot: no network, seeded weights, and answers that depend on all of their KV.

Float32 throughout, so that vLLM agrees with itself: the smallest gap between the best two logits is
about 100 times what another batch shape or a cached prefix changes in them.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvtier.demo.model import (
    LlamaShape,
    Weights,
    build,
    dense,
    save_tokenizer,
    save_weights,
)

LLAMA = LlamaShape(layers=4, hidden=256, heads=4, kv_heads=2, intermediate=512, vocab=512)
"""4 KiB of KV per token; 4 is divisible by tensor parallel 2."""

_BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "dtype": "float32",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}

GEMMA_WINDOW = 256
_GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "dtype": "float32",
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "intermediate_size": 512,
    "vocab_size": 512,
    "max_position_embeddings": 32768,
    "sliding_window": GEMMA_WINDOW,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def llama(folder: Path) -> Path:
    """Full attention, grouped queries: one KV-cache group."""
    return build(folder / "llama", LLAMA)


def gemma(folder: Path) -> Path:
    """Five sliding-window layers to one of full attention: several KV-cache groups."""
    path = folder / "gemma"
    path.mkdir()
    save_weights(path, dict(_gemma_weights(np.random.default_rng(0))))
    save_tokenizer(path, 512)
    (path / "config.json").write_text(json.dumps(_GEMMA))
    return path


def bert(folder: Path) -> Path:
    """An encoder: no KV cache. Its weights are vLLM's dummy ones."""
    path = folder / "bert"
    path.mkdir()
    save_tokenizer(path, 512)
    (path / "config.json").write_text(json.dumps(_BERT))
    return path


def _gemma_weights(rng: np.random.Generator) -> Iterator[tuple[str, Weights]]:
    hidden, width, kv_width, inner, head = 256, 256, 128, 512, 64

    def norm(size: int, gain: float) -> Weights:
        return np.full(size, gain - 1, dtype=np.float32)  # Gemma multiplies by 1 + weight

    yield "model.embed_tokens.weight", dense(rng, 512, hidden)
    for layer in range(6):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", norm(hidden, 1)
        yield f"{at}.self_attn.q_proj.weight", dense(rng, width, hidden)
        yield f"{at}.self_attn.k_proj.weight", dense(rng, kv_width, hidden)
        yield f"{at}.self_attn.v_proj.weight", dense(rng, kv_width, hidden)
        yield f"{at}.self_attn.o_proj.weight", dense(rng, hidden, width)
        yield f"{at}.self_attn.q_norm.weight", norm(head, 1.6)
        yield f"{at}.self_attn.k_norm.weight", norm(head, 1.6)
        yield f"{at}.post_attention_layernorm.weight", norm(hidden, 2.5)
        yield f"{at}.pre_feedforward_layernorm.weight", norm(hidden, 1)
        yield f"{at}.mlp.gate_proj.weight", dense(rng, inner, hidden)
        yield f"{at}.mlp.up_proj.weight", dense(rng, inner, hidden)
        yield f"{at}.mlp.down_proj.weight", dense(rng, hidden, inner)
        yield f"{at}.post_feedforward_layernorm.weight", norm(hidden, 1)
    yield "model.norm.weight", norm(hidden, 1)
    yield "lm_head.weight", dense(rng, 512, hidden, 8)


def prompts(count: int, length: int, *, seed: int = 0, shared: int = 0) -> list[list[int]]:
    """Random prompts that differ from their first token on, or after `shared` common ones."""
    rng = random.Random(seed)
    head = [rng.randrange(1, 512) for _ in range(shared)]
    return [head + [rng.randrange(1, 512) for _ in range(length - shared)] for _ in range(count)]
