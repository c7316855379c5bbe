"""The worker's half of the connector: what `KVTierConnector` adds to vLLM's own worker hooks."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import (
    OffloadingConnectorWorker,
)

from kvtier.config import Config, digest
from kvtier.connectors.vllm import fingerprint, ranks, recovery
from kvtier.connectors.vllm.adapters import Loaded
from kvtier.connectors.vllm.arrangement import arrangements, device_name
from kvtier.connectors.vllm.fingerprint import Fingerprint
from kvtier.connectors.vllm.looks import Looked
from kvtier.connectors.vllm.loras import Loras
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata
from kvtier.connectors.vllm.pages import asked_for, find_pages
from kvtier.connectors.vllm.ranks import Hello
from kvtier.connectors.vllm.spec import KVTierSpec
from kvtier.connectors.vllm.weights import Weights, identify
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.types import OpKind, OpResult, Placed, ScanBatch, TierOp

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

_LOOK_S = 10.0
_AHEAD = 64  # operations: a third of a millisecond


class Rank:
    """Passes operations down, answers up, and failures to vLLM in the shape it survives."""

    def __init__(
        self,
        config: Config,
        vllm_config: "VllmConfig",
        kv_cache_config: "KVCacheConfig",
        base: OffloadingConnectorWorker,
    ) -> None:
        assert isinstance(base.spec, KVTierSpec)
        self._spec = base.spec
        self.guard = base.spec.guard
        self._config = config
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._base = base
        self._by_blocks = recovery.by_blocks(kv_cache_config)
        self._said_broken = False
        self._failed_loads: set[int] = set()  # and not collected by vLLM yet
        self._hello: Hello | None = None
        self._weights: Weights | None = None
        self._arranged: dict[int, tuple[str, ...]] = {}
        self._device = ""
        self._placed: list[Placed] = []
        self._io_seconds: dict[int, float] = {}  # to be told
        self._look_at = 0.0
        self._timed = self._round = 0
        self._fingerprint: Fingerprint | None = None
        self._rest: list[TierOp] = []  # operations of this step that follow behind the pass
        self._asked = False  # for the hello, by this step
        self._loras: Loras | None = None
        self._step: KVTierMetadata | None = None  # until it is reported

    @property
    def worker(self) -> KVTierWorker:
        """Our worker, which vLLM's half has built in `register_kv_caches`."""
        assert isinstance(self._base.worker, KVTierWorker)
        return self._base.worker

    @property
    def loads(self) -> dict[int, str]:
        """Load jobs of vLLM in flight, by the request that waits for each."""
        loads: dict[int, str] = self._base._load_jobs
        return loads

    def learn(self, caches: "Mapping[str, torch.Tensor]") -> None:
        """Find out how the backend fills its pages, and who is here besides, before our worker is built."""
        spec, parallel = self._spec, self._vllm_config.parallel_config
        spec.sharers = ranks.sharers(spec.config.engine_id, parallel)
        if len(self._config.tiers) > 1 and ranks.looks_at_weights(parallel, spec.sharers):
            found = self._identify()
            spec.unread = found.unread
            self._weights = found._replace(unread=None)
        self._arranged = arrangements(self._vllm_config, self._kv_cache_config, caches)
        devices = {device_name(cache.device) for cache in caches.values()}
        self._device = ", ".join(sorted(devices))
        on_host = all(cache.device.type == "cpu" for cache in caches.values())
        self._look_first(caches)
        # A kernel that fails on a device takes the engine with it: none is called that nobody needs.
        if len(self._config.tiers) > 1 and (on_host or asked_for(self._config)):
            spec.pages = find_pages(self._vllm_config, self._kv_cache_config, caches)

    def _look_first(self, caches: "Mapping[str, torch.Tensor]") -> None:
        """Look at the weights as they were loaded, before anybody can change them."""
        eplb = bool(getattr(self._vllm_config.parallel_config, "enable_eplb", False))
        for cache in list(caches.values())[:1]:
            model = fingerprint.callers_model()
            self._fingerprint = Fingerprint(model, cache.device, experts_move=eplb)
            self._fingerprint.take(0)
        if getattr(self._vllm_config, "lora_config", None) is not None:
            self._loras = Loras(self._vllm_config.parallel_config.rank)

    def hello(self) -> Hello:
        """Describe this rank to the brain as it was at the start."""
        if self._hello is None:
            self._hello = self._describe()
        return self._hello

    def _describe(self) -> Hello:
        worker = self.worker
        return Hello(
            rank=self._vllm_config.parallel_config.rank,
            local_ranks=worker.sharers.ranks,
            copies=worker.copies,
            slots=worker.arena.slots,
            group_nbytes=worker.group_nbytes,
            pages=worker.pages,
            arranged=self._arranged,
            device=self._device,
            config_digest=digest(self._config),
            blocks_per_chunk=worker.blocks_per_chunk,
            weights=self._weights,
        )

    def _identify(self) -> Weights:
        config = self._vllm_config
        paths = (tier.options["path"] for tier in self._config.tiers[1:] if tier.kind == "file")
        folder = next(map(Path, map(str, paths)), None)
        return identify(config.model_config, config.load_config, folder)

    def before(self, meta: KVConnectorMetadata) -> None:
        """Act on a reset, and on overwritten blocks, before vLLM waits for the copies that it flushes."""
        self.worker.launched()  # by now it is, however the step before ended
        if not isinstance(meta, KVTierMetadata):
            return
        if meta.fail_loads:
            self.worker.fail_loads()
        self.worker.spoil(meta.spoiled)
        self._timed, self._asked, self._round = meta.timed, meta.greet, meta.round
        self._step = meta
        self.worker.idle = meta.idle

    def after(self) -> None:
        """Forget what was spoiled and is none of this rank's jobs, now that all of the step are known."""
        self.worker.forget_spoiled()

    def launching(self, meta: KVConnectorMetadata) -> None:
        """Be told that a forward pass comes next; look at the weights that it computes with."""
        if self._step is not None and self._step.look and self._fingerprint is not None:
            self._fingerprint.take(self._step.look)
        self.worker.launching(meta.load_jobs if isinstance(meta, KVTierMetadata) else {})

    def launched(self) -> None:
        """Be told that nothing more is submitted of this pass."""
        self.worker.launched()

    def order(self, meta: KVConnectorMetadata) -> None:
        """Hand a step's first operations to the I/O process, before the pass; of a rank that is off, the resets.

        What is answered during the pass returns with this step. Of many, the others follow behind the pass: they
        would only delay it.
        """
        self.order_rest()  # of a step that ended without
        if not isinstance(meta, KVTierMetadata):
            return
        ops = [op for op in meta.ops if op.kind is OpKind.RESET or not self.guard.broken]
        if meta.round:  # whoever waits for an answer counts from this step
            ops.sort(key=lambda op: op.kind is not OpKind.ASK)
        self._rest = ops[_AHEAD:]
        if ops:
            self.worker.submit_ops(ops[:_AHEAD])

    def order_rest(self) -> None:
        """Hand the other operations over."""
        rest, self._rest = self._rest, []
        if rest:
            self.worker.submit_ops(rest)

    def failed_requests(self, loads: dict[int, str], received: Iterable[str]) -> set[str]:
        """Name the requests that must start again, where block ids cannot say which blocks are bad.

        `loads` are those that were in flight until vLLM collected, just now, some of them. A load that a reset
        failed is remembered until it is collected: its copies may take longer than the step.
        """
        failed = self._failed_loads | self.worker.take_failed_loads()
        self._failed_loads = failed & self.loads.keys()
        if self._by_blocks:
            return set()
        return {loads[job] for job in failed - self._failed_loads if job in loads} & set(received)

    def invalid_blocks(self) -> set[int]:
        """Name the device blocks that did not get their KV, where vLLM goes on from what is before them."""
        blocks = self.worker.take_invalid_blocks()
        return blocks if self._by_blocks else set()

    def report(self, base: OffloadingWorkerMetadata | None) -> KVTierWorkerMetadata | None:
        """Join vLLM's finished jobs with our answers; None only when there is nothing of either."""
        nothing: list[OpResult | ScanBatch] = []
        answers = self.guard.run(self.worker.poll, nothing)
        failed = self.worker.take_failed()
        unmoved: list[Placed] = []
        placed = self.guard.run(self._moved, unmoved)
        spent, self._io_seconds = self._io_seconds, {}
        timed, self._timed = self._timed, 0
        asked, self._round = self._round, 0
        unseen: list[Looked] = []
        looked = self.guard.run(self._looked, unseen)
        hellos: list[Hello] = []
        if self._asked:
            hellos = self.guard.run(lambda: [self.hello()], hellos)
        unread: list[Loaded] = []
        loaded = self.guard.run(self._loaded, unread)
        broken = "" if self._said_broken else self.guard.broken  # last: until here it may become so
        copied = self.worker.trace.take()
        told = answers or failed or broken or placed or timed or looked or loaded or asked
        if base is None and not (told or spent or hellos or copied):
            return None
        self._said_broken = bool(self.guard.broken)
        meta = KVTierWorkerMetadata.of(base, broken=broken)
        meta.results = [answer for answer in answers if isinstance(answer, OpResult)]
        meta.scans = [answer for answer in answers if isinstance(answer, ScanBatch)]
        meta.failed, meta.timed, meta.placed, meta.round = failed, timed, placed, asked
        meta.looked, meta.loaded, meta.hellos = looked, loaded, hellos
        meta.copied, meta.io_seconds = copied, spent
        return meta

    def _looked(self) -> list[Looked]:
        """Say what was seen of the weights, each look once and in order."""
        if self._fingerprint is None:
            return []
        rank = self._vllm_config.parallel_config.rank
        return [Looked(rank, *seen) for seen in iter(self._fingerprint.taken, None)]

    def _loaded(self) -> list[Loaded]:
        """Say which LoRA adapters are loaded, if this step asks for it."""
        step, self._step = self._step, None
        if self._loras is None or step is None:
            return []
        return self._loras.report(step.adapters, step.look, step.paths)

    def _moved(self) -> list[Placed]:
        """Say where the memory is, if it is time to look and anything has changed."""
        if time.monotonic() < self._look_at:
            return []
        placed = self.worker.placed()
        self._io_seconds = self.worker.io_seconds()
        self._look_at = time.monotonic() + _LOOK_S
        if placed == self._placed:
            return []
        self._placed = placed
        return placed
