"""Whether the KV of a token depends on `max_model_len`: engines that differ in nothing else should share."""

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig

_OF_NO_LENGTH = {"default", "llama3", "linear", "proportional", "yarn"}
"""Kinds of rope that compute the same for a position, whatever the longest is. LongRoPE and dynamic NTK do not."""

_IMPORTED = re.compile(r"^\s*from (?:\.|vllm\.model_executor\.models\.)(\w+) import", re.MULTILINE)
_NOT_COMPUTING = {"adapters", "config"}
"""Modules of vLLM that turn models into poolers, and that check options: what a layer computes is not in them."""


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
    """Whether the code of the model, or code that it builds on, reads the length, or is not found; nothing is imported for it."""
    from vllm.model_executor.models import ModelRegistry

    found: dict[str, str] = {}
    try:
        for name in model.hf_config.architectures:
            _collect(ModelRegistry.models[name].module_name, found)
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError):
        return True
    return any("max_model_len" in source for source in found.values())


def _collect(module: str, found: dict[str, str]) -> None:
    """Read the source of a module of models and of those that it imports from, each once."""
    if module in found:
        return
    spec = find_spec(module)
    if spec is None or not spec.origin:
        raise ImportError(module)
    found[module] = source = Path(spec.origin).read_text()
    package = module.rpartition(".")[0]
    for name in _IMPORTED.findall(source):
        if name not in _NOT_COMPUTING:
            _collect(f"{package}.{name}", found)
