"""Whether the KV of a token depends on `max_model_len`: engines that differ in nothing else should share."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig

_OF_NO_LENGTH = {"default", "llama3", "linear", "proportional", "yarn"}
"""Kinds of rope that compute the same for a position, whatever the longest is. LongRoPE and dynamic NTK do not."""


def length_that_counts(model: "ModelConfig") -> int | None:
    """Return `max_model_len` where the KV may depend on it; None where it does not.

    It counts unless the kind of rope is known and the code of the model never reads it. Models of several media count:
    their code is in several files.
    """
    if _ropes(model) <= _OF_NO_LENGTH and not model.multimodal_config and not _is_read(model):
        return None
    return int(model.max_model_len)


def _ropes(model: "ModelConfig") -> set[str]:
    """Name every kind of rope that the model has, for each kind of its layers."""
    hf = model.hf_config
    found = getattr(hf, "rope_parameters", None) or getattr(hf, "rope_scaling", None) or {}
    return set(_kinds(found))


def _kinds(parameters: Mapping[str, object]) -> Iterator[str]:
    nested = [each for each in parameters.values() if isinstance(each, Mapping)]
    for each in nested:
        yield from _kinds(each)
    if not nested:
        yield str(parameters.get("rope_type", parameters.get("type", "default")))


def _is_read(model: "ModelConfig") -> bool:
    """Whether the code of the model reads the length, or is not found; nothing is imported for it."""
    from vllm.model_executor.models import ModelRegistry

    try:
        names = [ModelRegistry.models[name].module_name for name in model.hf_config.architectures]
        specs = [find_spec(name) for name in names]
        sources = [Path(spec.origin).read_text() for spec in specs if spec and spec.origin]
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError):
        return True
    return len(sources) < len(names) or any("max_model_len" in source for source in sources)
