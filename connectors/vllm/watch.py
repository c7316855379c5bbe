"""What EngineCore's half knows of the weights that the engine computes with, and of whose KV vLLM's own cache may hold."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtier.connectors.vllm import core_calls
from kvtier.connectors.vllm.adapters import Adapters
from kvtier.connectors.vllm.device_cache import DeviceCache
from kvtier.connectors.vllm.looks import WAIT_S, Looks, Trust

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

    from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata

logger = logging.getLogger(__name__)

_HARMLESS = ("update_max_model_len", "compute_weight_checksums", "profile")
"""Calls of the workers that change no weight, whatever they are given."""


class Watch:
    """The model's weights and the adapters'. EngineCore's main thread only."""

    def __init__(
        self,
        ranks: int,
        *,
        persist_lora: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.looks = Looks(ranks, clock)
        self.adapters = Adapters(ranks, self.looks, promised=persist_lora, clock=clock)
        self._clock = clock
        self._waiting: dict[str, float] = {}  # by request: since when
        self.device = DeviceCache(self.looks, self.adapters)
        self.touched = ""
        """The call of the workers that may have changed weights, if there was one: samples may not show what it did."""
        core_calls.listen("collective_rpc", self._called)

    def _called(self, method: object, result: object) -> None:
        self.looks.suspect()
        if not isinstance(method, str) or method not in _HARMLESS:
            self.touched = self.touched or str(method)

    def order(self, meta: "KVTierMetadata", output: "SchedulerOutput") -> None:
        """End the making of a step: say whether it computes anything, and let the ranks look, if it is time to."""
        meta.idle = output.total_num_scheduled_tokens == 0
        meta.look = self.looks.order(computes=not meta.idle)
        if meta.look:
            meta.paths = self.adapters.take_paths()
        meta.adapters = self.adapters.step(output.num_scheduled_tokens)

    def trust(self, request: str) -> Trust:
        """Say whether a request's hit may be given now; who waits, waits for 5 s, also where calls come faster than answers."""
        trust = self.looks.trust()
        if trust is Trust.YES and self.adapters.waits(request):
            trust = Trust.WAIT
        if trust is Trust.WAIT:
            now = self._clock()
            return trust if now - self._waiting.setdefault(request, now) <= WAIT_S else Trust.NO
        self._waiting.pop(request, None)
        return trust

    def departed(self, request: str) -> None:
        """Forget a request."""
        self._waiting.pop(request, None)
        self.adapters.departed(request)

    def hear(self, meta: "KVTierWorkerMetadata") -> None:
        """Take what the ranks have seen."""
        self.adapters.heard(meta.loaded)
        self.looks.heard(meta.looked)

    def reset(self, *, emptied: bool, noticed: bool) -> None:
        """Note that kvtier is empty. Unless it was `noticed` that weights were changed, nobody knows what they are now."""
        self.device.forgotten(emptied=emptied)
        if noticed:
            return
        self.looks.forgotten()
        if not emptied:
            logger.warning(
                "kvtier: reset while requests hold KV; storing nothing until a reset succeeds"
            )
