"""A Llama made on the spot: seeded random weights, a tokenizer trained on Python's own manual.

Nobody trained it, so its text is noise; but its attention is peaked and deep, so that every token
depends on the whole context: KV that is wrong anywhere changes the answer.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]

END = "<|end|>"
_QK_GAIN = 1.9  # attention logits of standard deviation 3.6: of 2,000 tokens a head reads a few
_OUT_GAIN = 1.5  # what a head reads outweighs what the token itself is
_LOGIT_GAIN = 8.0  # a greedy choice is far from a tie


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """What decides the size of the model and of its KV."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    intermediate: int
    vocab: int
    positions: int = 32768

    def config(self) -> dict[str, object]:
        """The `config.json` that transformers and vLLM read."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float32",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        }


def text() -> str:
    """English that is on every machine with Python: the topics of its `help()`."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def build(path: Path, shape: LlamaShape, seed: int = 0) -> Path:
    """Make the model in `path`, unless it is there already, and return `path`."""
    if (path / "config.json").exists():
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        save_weights(partial, dict(llama_weights(shape, np.random.default_rng(seed))))
        save_tokenizer(partial, shape.vocab)
        (partial / "config.json").write_text(json.dumps(shape.config(), indent=1))
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return path


def dense(rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> Weights:
    """A matrix that keeps the scale of what it multiplies, times `gain`."""
    weights = rng.standard_normal((rows, columns), dtype=np.float32)
    return weights * np.float32(gain / math.sqrt(columns))


def llama_weights(shape: LlamaShape, rng: np.random.Generator) -> Iterator[tuple[str, Weights]]:
    """Every tensor of a Llama, by its name in a checkpoint."""
    ones = np.ones(shape.hidden, dtype=np.float32)
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield (
        "model.embed_tokens.weight",
        rng.standard_normal((shape.vocab, shape.hidden), dtype=np.float32),
    )
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", ones
        yield f"{at}.self_attn.q_proj.weight", dense(rng, width, shape.hidden, _QK_GAIN)
        yield f"{at}.self_attn.k_proj.weight", dense(rng, kv_width, shape.hidden, _QK_GAIN)
        yield f"{at}.self_attn.v_proj.weight", dense(rng, kv_width, shape.hidden)
        yield f"{at}.self_attn.o_proj.weight", dense(rng, shape.hidden, width, _OUT_GAIN)
        yield f"{at}.post_attention_layernorm.weight", ones
        yield f"{at}.mlp.gate_proj.weight", dense(rng, shape.intermediate, shape.hidden)
        yield f"{at}.mlp.up_proj.weight", dense(rng, shape.intermediate, shape.hidden)
        yield f"{at}.mlp.down_proj.weight", dense(rng, shape.hidden, shape.intermediate)
    yield "model.norm.weight", ones
    yield "lm_head.weight", dense(rng, shape.vocab, shape.hidden, _LOGIT_GAIN)


def save_weights(path: Path, weights: dict[str, Weights]) -> None:
    """Write a one-file checkpoint."""
    from safetensors.numpy import save_file

    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(path: Path, vocab: int) -> None:
    """Train a byte-level BPE of exactly `vocab` entries on `text()`: every id decodes to something."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text()], trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    )
