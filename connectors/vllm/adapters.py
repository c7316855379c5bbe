"""Which LoRA adapters may have had other weights, and what EngineCore hears of them.

vLLM's hash of a chunk holds an adapter's name and path, not its weights. The rule: as soon as an adapter may have been
read again from its path, requests of that name and path neither load nor store, until the whole cache is reset.
Nothing is read here: a file on a dead mount would stop the engine.
"""

import hashlib
import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol

from kvtier.connectors.vllm import core_calls

logger = logging.getLogger(__name__)

_MOST = 1 << 16
_IN_DOUBT = -1


class Lora(Protocol):
    """What vLLM says of an adapter."""

    lora_name: str
    lora_path: str
    lora_int_id: int


class Adapters:
    """The adapters of all requests since the last reset: at most 65,536; further ones are in doubt.

    An adapter is in doubt once vLLM is asked to load it in place or has unloaded it, or once it comes back under another
    id, which is what unloading and loading it again looks like. EngineCore's main thread only.
    """

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}  # by adapter: its id, or that it is in doubt
        listening = [
            core_calls.listen("add_lora", self._hear_loaded),
            core_calls.listen("remove_lora", self._hear_unloaded),
        ]
        self._deaf = not all(listening)

    def arrived(self, lora: Lora | None) -> bytes | None:
        """Note the adapter of a request and return what it is called here; None: it has none."""
        if lora is None:
            return None
        adapter = _name(lora)
        if adapter not in self._ids:
            if len(self._ids) < _MOST:
                self._ids[adapter] = _IN_DOUBT if _in_place(lora) else lora.lora_int_id
        else:
            self.loaded(lora)
        return adapter

    def loaded(self, lora: Lora) -> None:
        """Note that vLLM loads an adapter, or finds that it has it."""
        adapter = _name(lora)
        if adapter in self._ids and (_in_place(lora) or self._ids[adapter] != lora.lora_int_id):
            self._ids[adapter] = _IN_DOUBT

    def unloaded(self, lora_id: int) -> None:
        """Note that vLLM forgets an adapter: what it loads under that name later may be another one."""
        for adapter, known in self._ids.items():
            if known == lora_id:
                self._ids[adapter] = _IN_DOUBT

    def _hear_loaded(self, lora: Any, _: object) -> None:
        self._hear(self.loaded, lora)

    def _hear_unloaded(self, lora_id: Any, _: object) -> None:
        self._hear(self.unloaded, lora_id)

    def _hear(self, note: Callable[[Any], None], about: Any) -> None:
        """Note what EngineCore did; where that makes no sense, every adapter is in doubt and the engine goes on."""
        try:
            note(about)
        except Exception:
            logger.exception("kvtier: what is stored of LoRA adapters is not used any more")
            self._deaf = True

    def doubtful(self, adapter: bytes | None) -> bool:
        """Whether chunks of an adapter may be of other weights; None: of no adapter."""
        if adapter is None:
            return False
        return self._deaf or self._ids.get(adapter, _IN_DOUBT) == _IN_DOUBT

    def reset(self, live: Collection[bytes | None]) -> None:
        """Begin anew when no chunk is left: with what is known of the adapters of `live` requests."""
        self._ids = {adapter: known for adapter, known in self._ids.items() if adapter in live}


def _in_place(lora: Lora) -> bool:
    return bool(getattr(lora, "load_inplace", False))


def _name(lora: Lora) -> bytes:
    return hashlib.sha256(repr((lora.lora_name, lora.lora_path)).encode()).digest()[:16]
