"""A tiny model of each family: its `config.json` and a tokenizer. `tests.modes.worker` gives it weights as it is loaded."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer

from kvtier.demo.model import save_tokenizer

Json = dict[str, Any]

VOCAB = 512
WINDOW = 256
IMAGE_TOKENS = 32
_ROPE: Json = {"rope_type": "default", "rope_theta": 10000.0}
_COMMON: Json = {
    "dtype": "float32",
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
    "hidden_size": 128,
    "intermediate_size": 256,
    "rope_parameters": _ROPE,
}
_NORM: Json = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
_HEADS: Json = {"num_attention_heads": 4, "num_key_value_heads": 2}
_ATTENTION: Json = {**_NORM, **_HEADS, "head_dim": 64}
_EXPERTS: Json = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_QWEN_EXPERTS: Json = {
    **_EXPERTS,
    "num_experts": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_TOWER: Json = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_LATENT: Json = {
    **_NORM,
    **_EXPERTS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "routed_scaling_factor": 1.0,
}


def _model(architecture: str, kind: str, layers: int, *parts: Json, **more: Any) -> Json:
    named = {"architectures": [architecture], "model_type": kind, "num_hidden_layers": layers}
    made = {**_COMMON, **named}
    for part in parts:
        made |= part
    return made | more


MODELS: dict[str, Json] = {
    "llama": _model("LlamaForCausalLM", "llama", 4, _ATTENTION),
    "qwen3": _model("Qwen3ForCausalLM", "qwen3", 3, _ATTENTION),
    "mistral": _model("MistralForCausalLM", "mistral", 4, _ATTENTION, sliding_window=WINDOW),
    "mixtral": _model(
        "MixtralForCausalLM",
        "mixtral",
        3,
        _ATTENTION,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen3-moe": _model("Qwen3MoeForCausalLM", "qwen3_moe", 3, _ATTENTION, _QWEN_EXPERTS),
    "deepseek-v2": _model(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        3,
        _LATENT,
        q_lora_rank=None,
        topk_method="greedy",
        scoring_func="softmax",
        norm_topk_prob=False,
    ),
    "deepseek-v3": _model(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        3,
        _LATENT,
        q_lora_rank=64,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        num_nextn_predict_layers=1,
    ),
    "gpt-oss": _model(
        "GptOssForCausalLM",
        "gpt_oss",
        4,
        _ATTENTION,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        swiglu_limit=7.0,
        attention_bias=True,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
    "llama4": _model(
        "Llama4ForCausalLM",
        "llama4_text",
        4,
        _ATTENTION,
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention"] * 3 + ["full_attention"],
        no_rope_layers=[1, 1, 1, 0],
        intermediate_size_mlp=256,
        num_local_experts=4,
        num_experts_per_tok=1,
        moe_layers=[1, 3],
        interleave_moe_layer_step=2,
        use_qk_norm=True,
        attn_temperature_tuning=False,
    ),
    "lfm2": _model(
        "Lfm2ForCausalLM",
        "lfm2",
        4,
        _HEADS,
        layer_types=["conv", "full_attention"] * 2,
        conv_L_cache=3,
        conv_bias=False,
        conv_dim=128,
        conv_dim_out=128,
        block_dim=128,
        block_ff_dim=256,
        block_multiple_of=32,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        norm_eps=1e-6,
    ),
    "qwen3-next": _model(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        4,
        _ATTENTION,
        _QWEN_EXPERTS,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
        full_attention_interval=4,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        shared_expert_intermediate_size=64,
        partial_rotary_factor=0.25,
        rope_parameters={**_ROPE, "partial_rotary_factor": 0.25},
    ),
    "granite": _model(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        4,
        _NORM,
        _HEADS,
        layer_types=["mamba", "mamba", "attention", "mamba"],
        mamba_n_heads=8,
        mamba_d_state=32,
        mamba_n_groups=1,
        mamba_d_head=32,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_chunk_size=64,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=256,
        position_embedding_type="rope",
        embedding_multiplier=1.0,
        attention_multiplier=0.125,
        residual_multiplier=1.0,
        logits_scaling=1.0,
    ),
    "mimo": _model(
        "MiMoForCausalLM", "qwen2", 4, _NORM, _HEADS, head_dim=32, num_nextn_predict_layers=1
    ),
    "eagle": _model("EagleLlamaForCausalLM", "llama", 1, _ATTENTION),
    "eagle3": _model(
        "LlamaForCausalLMEagle3",
        "llama",
        1,
        _ATTENTION,
        draft_vocab_size=VOCAB,
        target_hidden_size=128,
    ),
    "draft": _model("LlamaForCausalLM", "llama", 2, _ATTENTION),
    "blip2": {
        "architectures": ["Blip2ForConditionalGeneration"],
        "model_type": "blip-2",
        "dtype": "float32",
        "num_query_tokens": IMAGE_TOKENS,
        "image_token_index": VOCAB,
        "vision_config": {**_TOWER, "image_size": 56, "patch_size": 14},
        "qformer_config": {**_TOWER, "encoder_hidden_size": 64, "cross_attention_frequency": 1},
        "text_config": _model("LlamaForCausalLM", "llama", 4, _ATTENTION, vocab_size=VOCAB + 1),
    },
}
_FILES: dict[str, Json] = {
    "blip2": {
        "preprocessor_config.json": {
            "image_processor_type": "BlipImageProcessor",
            "size": {"height": 56, "width": 56},
        },
        "processor_config.json": {
            "processor_class": "Blip2Processor",
            "num_query_tokens": IMAGE_TOKENS,
        },
    }
}


def make(folder: Path, name: str) -> Path:
    """Make the model `name` in `folder`, unless it is there already."""
    path = folder / name
    if not path.exists():
        path.mkdir()
        for file, content in _tokenizer("text_config" in MODELS[name]).items():
            (path / file).write_bytes(content)
        for file, written in {"config.json": MODELS[name], **_FILES.get(name, {})}.items():
            (path / file).write_text(json.dumps(written))
    return path


@cache
def _tokenizer(sees: bool) -> dict[str, bytes]:
    """The files of a tokenizer, whose last token is an image's where the model `sees`."""
    with TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), VOCAB)
        if sees:
            made = Tokenizer.from_file(f"{folder}/tokenizer.json")
            made.add_special_tokens(["<image>"])
            made.save(f"{folder}/tokenizer.json")
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
