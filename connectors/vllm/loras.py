"""Which LoRA adapters a rank has loaded, by content: hashed where vLLM reads them, in the thread that reads them."""

import functools
import logging
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from kvtier.connectors.vllm.adapters import Loaded
from kvtier.io_process.weights import FileState

logger = logging.getLogger(__name__)

_SLACK_NS = 50_000_000  # a file's times lag behind the clock by a tick
_SUFFIXES = (".safetensors", ".bin", ".pt", ".json")
_UNKNOWN = b""

_Files = dict[str, FileState]


@dataclass(slots=True)
class _Read:
    """An adapter as it was read. vLLM holds its model as long as it has it loaded."""

    model: "weakref.ref[Any]"
    digest: bytes
    folder: str
    files: _Files | None  # None: nobody knows what they were


class Loras:
    """The adapters of one rank. Called from the worker's main thread, and nothing here raises into a load."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._read: dict[int, list[_Read]] = {}  # by id, the last one read at the end
        self._check: dict[int, str] = {}
        self._news = False
        self._look = 0
        _watch(self)

    def check(self, paths: Mapping[int, str]) -> None:
        """Let the next look find out whether the files of these adapters, by id, are as they were read."""
        self._check |= paths

    def read(self, model: Any, folder: str, files: _Files | None) -> None:
        """Note what vLLM has read."""
        known = _Read(weakref.ref(model, self._dropped), _digest(model), folder, files)
        self._read.setdefault(model.id, []).append(known)
        self._news = True

    def report(self, look: int = 0) -> list[Loaded]:
        """Say what is loaded: with each look, and between looks what is news."""
        if not (look or self._news):
            return []
        digests = {}
        for number, reads in list(self._read.items()):
            reads[:] = [each for each in reads if each.model() is not None]
            if not reads:
                del self._read[number]
                continue
            if look and number in self._check and not _as_read(reads[-1], self._check[number]):
                reads[-1].digest = _UNKNOWN  # until it is read again
            digests[number] = reads[-1].digest
        if look:
            self._look = look
            self._check.clear()
        self._news = False
        return [Loaded(self._rank, self._look, digests)]

    def _dropped(self, _: object) -> None:
        self._news = True


def _digest(model: Any) -> bytes:
    """Hash all that an adapter adds to the model's weights."""
    seen = xxhash.xxh3_128()
    try:
        for parts in (model.loras, getattr(model, "modules_to_save", {})):
            for name in sorted(parts):
                for attribute, value in sorted(vars(parts[name]).items()):
                    plain = None if isinstance(value, torch.Tensor) else value
                    seen.update(repr((name, attribute, plain)).encode())
                    if isinstance(value, torch.Tensor):
                        seen.update(repr((value.shape, value.dtype)).encode())
                        flat = value.detach().cpu().contiguous().view(-1)
                        seen.update(flat.view(torch.uint8).numpy())
    except Exception:
        logger.exception("kvtier: chunks of a LoRA adapter are not kept")
        return _UNKNOWN
    return seen.digest()


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


def _as_read(known: _Read, path: str) -> bool:
    """Whether what is at a path now is what was read."""
    there = os.path.abspath(os.path.expanduser(path)) == os.path.abspath(known.folder)
    return there and known.files is not None and known.files == _files(known.folder)


_watching: "weakref.WeakSet[Loras]" = weakref.WeakSet()


def _watch(loras: Loras) -> None:
    """Let it hear of every adapter that vLLM reads from files: vLLM tells no connector."""
    from vllm.lora.lora_model import LoRAModel

    _watching.add(loras)
    theirs = LoRAModel.from_local_checkpoint.__func__
    if not hasattr(theirs, "__wrapped__"):
        LoRAModel.from_local_checkpoint = classmethod(_told(theirs))


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
