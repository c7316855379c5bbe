"""Which LoRA adapters a rank has loaded, by content: hashed where vLLM reads them, in the thread that reads them."""

import functools
import logging
import os
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from kvtier.connectors.vllm.adapters import Loaded
from kvtier.connectors.vllm.wrapping import wrapped
from kvtier.io_process.weights import FileState

logger = logging.getLogger(__name__)

_SLACK_NS = 50_000_000  # a file's times lag behind the clock by a tick
_SUFFIXES = (".safetensors", ".bin", ".pt", ".json")
_FOLDERS = 4096
_UNKNOWN = b""

_Files = dict[str, FileState]


@dataclass(slots=True)
class _Read:
    """An adapter as it was read. vLLM holds its model as long as it has it loaded."""

    model: "weakref.ref[Any]"
    digest: bytes


class Loras:
    """The adapters of one rank. Called from the worker's main thread, and nothing here raises into a load."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._read: dict[int, list[_Read]] = {}  # by id
        self._found: dict[str, tuple[_Files, bytes]] = {}  # by folder: what was read there last
        _watch(self)

    def read(self, model: Any, folder: str, files: _Files | None) -> None:
        """Note what vLLM has read; `files` None: nobody knows what they were."""
        digest = _digest(model)
        self._read.setdefault(model.id, []).append(_Read(weakref.ref(model), digest))
        folder = os.path.abspath(folder)
        self._found.pop(folder, None)
        if files is not None:
            if len(self._found) >= _FOLDERS:
                del self._found[next(iter(self._found))]
            self._found[folder] = files, digest

    def report(self, step: int, look: int, paths: Iterable[str] = ()) -> list[Loaded]:
        """Say, for a step that computes with adapters and for a look, what is loaded, and what is in the files at `paths`."""
        if not (step or look):
            return []
        digests = {}
        for number, reads in list(self._read.items()):
            reads[:] = [each for each in reads if each.model() is not None]
            if reads:
                contents = {each.digest for each in reads}
                digests[number] = contents.pop() if len(contents) == 1 else _UNKNOWN
            else:
                del self._read[number]
        expected = {path: self._expected(path) for path in paths}
        return [Loaded(self._rank, step, digests, expected)]

    def _expected(self, path: str) -> bytes:
        """Give the digest of what vLLM would read at a path: of what it read there last, if the files are the same."""
        folder = os.path.abspath(os.path.expanduser(path))
        files, digest = self._found.get(folder, (None, _UNKNOWN))
        return digest if files is not None and files == _files(folder) else _UNKNOWN


def _digest(model: Any) -> bytes:
    """Hash all that an adapter adds to the model's weights."""
    seen = xxhash.xxh3_128()
    try:
        for parts in (model.loras, getattr(model, "modules_to_save", {})):
            for name in sorted(parts):
                _feed(seen, name, vars(parts[name]))
    except Exception:
        logger.exception("kvtier: chunks of a LoRA adapter are not kept")
        return _UNKNOWN
    return seen.digest()


def _feed(seen: "xxhash.xxh3_128", name: object, value: object) -> None:
    """Hash a value and what is in it, with its name."""
    if isinstance(value, torch.Tensor):
        seen.update(repr((name, value.shape, value.dtype)).encode())
        flat = value.detach().cpu().contiguous().view(-1)
        seen.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for each in sorted(value):
            _feed(seen, (name, each), value[each])
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            _feed(seen, (name, i), each)
    else:
        seen.update(repr((name, value)).encode())


def _files(folder: str) -> _Files | None:
    """List the files of an adapter; None where that is not possible, or one is so new that it may be changing."""
    now = time.time_ns()
    try:
        with os.scandir(folder) as entries:
            named = [entry for entry in entries if entry.name.endswith(_SUFFIXES)]
            found = {entry.name: FileState.of(entry.stat()) for entry in named}
    except (OSError, TypeError):
        return None
    settled = all(state.ctime_ns < now - _SLACK_NS for state in found.values())
    return found if settled else None


_watching: "weakref.WeakSet[Loras]" = weakref.WeakSet()


def _watch(loras: Loras) -> None:
    """Let it hear of every adapter that vLLM reads from files: vLLM tells no connector."""
    _watching.add(loras)
    try:
        from vllm.lora.lora_model import LoRAModel

        theirs = LoRAModel.from_local_checkpoint.__func__
    except (ImportError, AttributeError) as exc:
        logger.warning("kvtier: chunks of LoRA adapters are not kept with this vLLM: %s", exc)
        return
    LoRAModel.from_local_checkpoint = classmethod(wrapped(theirs, _told))


def _told(theirs: Any) -> Any:
    @functools.wraps(theirs)
    def from_local_checkpoint(cls: Any, *args: Any, **kwargs: Any) -> Any:
        folder = next(iter([*args, *kwargs.values()]), "")
        before = _files(folder)
        model = theirs(cls, *args, **kwargs)
        for loras in list(_watching):
            try:
                loras.read(model, folder, before if before == _files(folder) else None)
            except Exception:
                logger.exception("kvtier: a LoRA adapter was not taken note of")
        return model

    return from_local_checkpoint
