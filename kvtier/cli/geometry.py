"""How many bytes of KV a model makes, from its config.json alone: no weights, no torch, no vLLM."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kvtier.chunking import group_layers
from kvtier.errors import ConfigError, reason

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_MOST_LAYERS = 10_000
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FULL, _SLIDING = "full_attention", "sliding_attention"


class Geometry(NamedTuple):
    """What decides the size of a chunk on one rank."""

    attention: str  # MLA, MHA, GQA or MQA, with its heads, for people
    dtype: str
    layers: int
    groups: tuple[tuple[str, int], ...]  # kind of layer and its KV-cache groups
    group_layers: int  # layers that one group, and so one chunk, holds
    layer_nbytes: int  # of one token in one layer on one rank
    window: int | None  # tokens a sliding layer looks back
    copies: bool = False  # every rank has the same KV

    @property
    def nbytes_per_token(self) -> int:
        """Bytes of one token on one rank, all layers together."""
        return self.layers * self.layer_nbytes

    @property
    def group_nbytes_per_token(self) -> int:
        """Bytes of one token on one rank, of the layers of one KV-cache group."""
        return self.group_layers * self.layer_nbytes

    @property
    def full_groups(self) -> int:
        """Groups that keep every chunk of a sequence."""
        return dict(self.groups).get(_FULL, 0)


def read_geometry(model: Path, *, ranks: int, dtype: str = "auto") -> Geometry:
    """Read a model's config.json, as `ranks` tensor-parallel ranks see it; `locate` finds the model.

    Raises:
        ConfigError: there is no such file, or it describes layers without an ordinary KV cache.
    """
    model = locate(model)
    file = model / "config.json" if model.is_dir() else model
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(
            f"{file}: cannot be read as a model's config.json: {reason(exc)}"
        ) from exc
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: not a model's config.json")
    text = next((raw[key] for key in ("text_config", "llm_config") if raw.get(key)), raw)
    try:
        return _geometry({**raw, **text}, ranks, dtype)
    except (KeyError, TypeError) as exc:
        raise ConfigError(f"{file}: no attention layers in it that kvtier knows: {exc}") from exc


def locate(model: Path) -> Path:
    """Find a model: a directory, a config.json, or a name such as `org/model` in the local cache of Hugging Face.

    Raises:
        ConfigError: it is a name, and the cache has no such model.
    """
    if model.exists() or not _HUB_NAME.fullmatch(str(model)):
        return model
    try:
        from huggingface_hub import try_to_load_from_cache  # comes with vLLM
    except ImportError:
        found = None
    else:
        found = try_to_load_from_cache(str(model), "config.json")
    if not isinstance(found, str):
        raise ConfigError(
            f"{model}: no such directory, and no such model in the cache of Hugging Face here; "
            f"run 'hf download {model} config.json'"
        )
    return Path(found).parent


def _geometry(raw: Mapping[str, object], ranks: int, dtype: str) -> Geometry:
    dtype = _dtype(raw, dtype)
    attention, elements, latent = _attention(raw, ranks)
    kinds = Counter(_layer_kinds(raw))
    if not kinds or not elements:
        raise KeyError("num_hidden_layers" if elements else "head_dim")
    each = group_layers(kinds.values())
    window = raw.get("sliding_window")
    return Geometry(
        attention=attention,
        dtype=dtype,
        layers=kinds.total(),
        groups=tuple((kind, -(-n // each)) for kind, n in kinds.items()),
        group_layers=each,
        layer_nbytes=elements * _ITEMSIZE[dtype],
        window=window if isinstance(window, int) and _SLIDING in kinds else None,
        copies=latent and ranks > 1,
    )


def _dtype(raw: Mapping[str, object], dtype: str) -> str:
    """Choose the dtype of the KV cache; vLLM takes a float32 checkpoint as bfloat16 unless it is told."""
    if dtype == "auto":
        dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
        dtype = "bfloat16" if dtype == "float32" else dtype
    if dtype not in _ITEMSIZE:
        raise ConfigError(f"{dtype!r} is not a KV-cache dtype; known: {', '.join(_ITEMSIZE)}")
    return dtype


def _attention(raw: Mapping[str, object], ranks: int) -> tuple[str, int, bool]:
    """Name the kind of attention, count the elements per token, layer and rank, and say whether it is latent."""
    refuse_ranks(_int(raw, "num_attention_heads", "n_head"), ranks)
    if raw.get("kv_lora_rank"):
        latent = _int(raw, "kv_lora_rank") + _int(raw, "qk_rope_head_dim")
        return f"MLA, {latent} latent elements on every rank", latent, True
    heads = _int(raw, "num_attention_heads", "n_head")
    kv_heads = _int(raw, "num_key_value_heads", default=heads) or heads
    dim = _int(raw, "head_dim", default=0) or _int(raw, "hidden_size", "n_embd") // heads
    kind = "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"
    words = f"{kind}, {kv_heads} KV heads of {dim} elements"
    return words, 2 * dim * max(1, kv_heads // ranks), False


def refuse_ranks(heads: int, ranks: int) -> None:
    """Raise a ConfigError for tensor-parallel ranks that cannot share the heads evenly: vLLM refuses them."""
    if heads % ranks:
        raise ConfigError(
            f"{ranks} ranks cannot share {heads} attention heads evenly: vLLM refuses that"
        )


def _layer_kinds(raw: Mapping[str, object]) -> list[str]:
    layers = _int(raw, "num_hidden_layers", "n_layer")
    if layers > _MOST_LAYERS:
        raise KeyError("num_hidden_layers")
    listed = raw.get("layer_types")
    if isinstance(listed, list):
        kinds = [str(kind) for kind in listed[:layers]]
    elif raw.get("sliding_window") and raw.get("use_sliding_window", True):
        every = _int(raw, "sliding_window_pattern", default=0) or layers + 1
        kinds = [_FULL if (i + 1) % every == 0 else _SLIDING for i in range(layers)]
    else:
        kinds = [_FULL] * layers
    if foreign := set(kinds) - {_FULL, _SLIDING}:
        raise ConfigError(
            f"layers of kind {', '.join(sorted(foreign))}: their state is not counted per token, "
            "so there is no figure for this model"
        )
    return kinds


def _int(raw: Mapping[str, object], *keys: str, default: int | None = None) -> int:
    value = next((raw[key] for key in keys if raw.get(key) is not None), default)
    least = 1 if default is None else 0
    if not isinstance(value, int) or value < least:
        raise KeyError(keys[0])
    return value
