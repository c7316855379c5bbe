"""EngineCore's half of the connector: what `KVTierConnector` adds to vLLM's own scheduler hooks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import chain
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
)
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import OffloadKey

from kvtier.brain import TieredCache
from kvtier.config import Config, digest, of_rank
from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.brain import build_brain
from kvtier.connectors.vllm.hints import Hints
from kvtier.connectors.vllm.manager import TieredCacheManager
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata, SlotSpec
from kvtier.connectors.vllm.overwrites import Overwrites
from kvtier.connectors.vllm.ranks import Hello, Ranks, agree, engine_of
from kvtier.connectors.vllm.settings import summary
from kvtier.connectors.vllm.speed import Speed
from kvtier.trace.recorder import Recorder
from kvtier.types import BlockKey, OpKind, TierOp

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

_FORSAKEN = 1 << 62  # operation ids beyond the brain's


class Fetch(Enum):
    """What became of a hit that vLLM's lookups found."""

    PINNED = auto()  # all of it is in tier 0 and stays there for this request
    READING = auto()  # ask again later
    SHORTER = auto()  # look up again: what is below tier 0 does not come


@dataclass(slots=True)
class _Job:
    """A load or store that the ranks carry out."""

    plan: int
    keys: tuple[BlockKey, ...]
    ranks_left: int
    failed: set[int] = field(default_factory=set)


class Scheduling:
    """Drives the brain from vLLM's steps. Called from EngineCore's main thread only."""

    def __init__(
        self,
        config: Config,
        vllm_config: "VllmConfig",
        kv_cache_config: "KVCacheConfig",
        base: OffloadingConnectorScheduler,
    ) -> None:
        assert isinstance(base.manager, TieredCacheManager)
        self.manager = base.manager
        self.guard = base.manager.guard
        self._config = config
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._base = base
        self._overwrites = Overwrites(vllm_config, kv_cache_config)
        self._ranks: Ranks | None = None
        self._opened = False
        self._jobs: dict[int, _Job] = {}
        self._reading: set[str] = set()
        self._fail_loads = False
        self._recorder: Recorder | None = None
        self.speed = Speed()

    @property
    def ranks(self) -> Ranks:
        """The ranks, once they have said hello."""
        assert self._ranks is not None
        return self._ranks

    @property
    def brain(self) -> TieredCache:
        """The brain, once the ranks have said hello."""
        assert self.manager.brain is not None
        return self.manager.brain

    def meet(self, metadata: Sequence[KVConnectorHandshakeMetadata]) -> None:
        """Take the ranks' hellos and make the brain that fits them.

        From 0.33 on, vLLM repeats them at each wake-up: the slots are still the ones of the start, and so
        is the brain.

        Raises:
            ConfigError: the ranks disagree or one is missing; the start is refused.
        """
        hellos = tuple(hello for hello in metadata if isinstance(hello, Hello))
        if self._ranks is not None:
            if hellos != self._ranks.hellos:
                self.guard.trip("the ranks are not those of the start")
            return
        world_size = self._vllm_config.parallel_config.world_size
        self._ranks = ranks = agree(hellos, world_size, digest(self._config))
        mine = of_rank(self._config, ranks.local_ranks)
        brain = build_brain(
            mine,
            self._base.config,
            ranks,
            width=self._vllm_config.model_config.get_hidden_size(),
        )
        groups = [group.group_idx for group in self._base.config.kv_group_configs]
        self.manager.attach(brain, groups, self._base._req_status)
        if self._config.trace is not None:
            group = self._base.config.kv_group_configs[self._prefix_group()]
            transfer = self._vllm_config.kv_transfer_config
            assert transfer is not None
            engine = engine_of(transfer.engine_id, self._vllm_config.parallel_config)
            self._recorder = Recorder(self._config.trace, group.tokens_per_chunk, engine=engine)
        init_logger("vllm.kvtier").info(  # at its own level: only vLLM's loggers say so much
            "kvtier: chunks of %d tokens, %d rank(s), %d on a node; of each rank: %s",
            self._base.config.kv_group_configs[self._prefix_group()].tokens_per_chunk,
            len(ranks.hellos),
            ranks.local_ranks,
            summary(mine, ranks.arena_nbytes),
        )
        why = identity.ephemeral(self._vllm_config, hellos, self._config)
        for tier, _ in identity.lossy(self._config):
            logger.warning(
                "kvtier: tier %r is lossy: answers over what is read from it may differ; its records are "
                "of a namespace of their own",
                tier,
            )
        if why and len(self._config.tiers) > 1:
            logger.warning("kvtier: nothing stored will be found again after a restart: %s", why)

    def unopened(self) -> bool:
        """Whether the engine owes us one step, with which the tiers open."""
        return self._ranks is not None and not self._opened

    def arrive(self, request: "Request") -> None:
        """Tell the brain of a new request."""
        hints = Hints.of(request.kv_transfer_params)
        if hints.session_id is None:  # vLLM's own, from 0.32 on
            hints = hints._replace(session_id=getattr(request, "session_id", None))
        persist = hints.persist and (request.lora_request is None or self._config.persist_lora)
        self.manager.arrive(request.request_id, hints._replace(persist=persist))
        if self._recorder is not None:
            state = self._base._req_status[request.request_id].group_states[self._prefix_group()]
            keys = [BlockKey(key) for key in state.offload_keys]
            tokens = request.num_prompt_tokens
            self._recorder.arrived(request.request_id, keys, tokens, hints.session_id)

    def finished(self, request: "Request") -> None:
        """Note that a request has its last token."""
        if self._recorder is not None:
            self._recorder.departed(request.request_id, request.num_output_tokens)

    def close(self) -> None:
        """Leave nothing behind that still writes."""
        if self._recorder is not None:
            self._recorder.close()

    def reading(self, request: "Request") -> bool:
        """Whether reads for this request are still under way; O(1)."""
        name = request.request_id
        if name not in self._reading:
            return False
        if not self.brain.ready(name):
            return True
        self._reading.discard(name)
        return False

    def fetch(self, request: "Request", computed: int, hit: int) -> Fetch:
        """Pin a hit of `hit` tokens after `computed`, or order the reads that it needs."""
        name = request.request_id
        plan = self.brain.plan_read(name, self._needed(name, computed, computed + hit))
        if plan is None:
            return Fetch.PINNED
        if not plan.reading:
            return Fetch.SHORTER
        self.manager.note_source(name, plan.keys)
        self._reading.add(name)
        return Fetch.READING

    def step(self, output: "SchedulerOutput", meta: KVTierMetadata) -> None:
        """End a step: adopt vLLM's new jobs, offer again what had no room, take the brain's operations."""
        if not self._opened:
            self._open()
        for job_id, job in chain(meta.load_jobs.items(), meta.store_jobs.items()):
            spec = job.src_spec if job_id in meta.load_jobs else job.dst_spec
            if isinstance(spec, SlotSpec) and spec.plan is not None:
                keys = self.manager.planned.pop(spec.plan).keys
                self._jobs[job_id] = _Job(spec.plan, keys, len(self.ranks.hellos))
        self._offer_again()
        meta.ops = self.brain.drain()
        meta.fail_loads, self._fail_loads = self._fail_loads, False
        meta.spoiled = self._overwrites.spoiled(output, meta.jobs_to_flush)
        meta.timed = self.speed.begin(output.total_num_scheduled_tokens)

    def hear(self, meta: KVTierWorkerMetadata) -> None:
        """Take what the ranks report: answers first, so that a failure is known before its job ends."""
        if meta.broken:
            self.guard.trip(f"a worker is off: {meta.broken}")
            return
        for batch in meta.scans:
            self.brain.scanned(batch)
        self.brain.complete(meta.results)
        self.manager.located(meta.placed)
        load = meta.transfer_stats.load
        if load.time:
            self.brain.transferred(load.bytes, load.time)
        for job_id, positions in meta.failed.items():
            if job_id in self._jobs:
                self._jobs[job_id].failed |= positions
        for job_id, count in meta.completed_jobs.items():
            self._acknowledge(job_id, count)
        if sample := self.speed.end(meta.timed):
            self.brain.prefilled(*sample)

    def cancel(self, request: str) -> None:
        """Forget what was being read for a request that ended."""
        self._reading.discard(request)
        self.brain.cancel(request)

    def reset(self, *, emptied: bool) -> None:
        """Begin a new epoch. Requests whose KV is of the old one are not stored until they are preempted.

        Unless the device's own cache was `emptied`, it may give KV of the old epoch to any request: then
        nothing is stored until a reset that does empty it.
        """
        if not emptied:
            logger.warning(
                "kvtier: reset while requests hold KV; storing nothing until a reset succeeds"
            )
        self.manager.storing = emptied
        status = self._base._req_status
        stale = [n for n, s in status.items() if s.req.num_computed_tokens or s.transfer_jobs]
        self._reading.clear()
        self._fail_loads = True
        self.brain.reset(self._manifest(identity.new_epoch()), stale=stale)

    def forsake(self, meta: KVTierMetadata) -> None:
        """Carry a reset out with kvtier off: no load of the old epoch ends well, no record of it stays."""
        text = self._manifest(identity.new_epoch())
        meta.fail_loads = True
        meta.ops = [
            TierOp(_FORSAKEN + tier, OpKind.RESET, tier=tier, text=text)
            for tier in range(1, len(self._config.tiers))
        ]

    def _prefix_group(self) -> int:
        """Return the position of the group whose chunks stand for a whole prefix: the first of full attention."""
        groups = self._base.config.kv_group_configs
        full = (i for i, group in enumerate(groups) if group.sliding_window_size_in_chunks is None)
        return next(full, 0)

    def _open(self) -> None:
        self._opened = True
        self.brain.open(self.ranks.slots, self._manifest())

    def _manifest(self, epoch: str = "") -> str:
        return identity.manifest(
            self._vllm_config, self._kv_cache_config, self.ranks.hellos, self._config, epoch
        )

    def _needed(self, request: str, start: int, end: int) -> list[BlockKey]:
        """List the keys that a hit of tokens [start, end) loads: of a window group, only its window."""
        keys: list[BlockKey] = []
        status = self._base._req_status[request]
        for group, state in zip(
            self._base.config.kv_group_configs, status.group_states, strict=True
        ):
            first = start // group.tokens_per_chunk
            last = -(-end // group.tokens_per_chunk)
            window = group.load_window_size_in_chunks(end)
            if window is not None:
                first = max(first, last - window)
            keys += [BlockKey(key) for key in state.offload_keys[first:last]]
        return keys

    def _offer_again(self) -> None:
        """Rewind vLLM's store index to the first chunk that only lacked room.

        Not for window groups: their blocks are freed, and used by others, while a chunk waits.
        """
        for request, keys in self.manager.no_room.items():
            status = self._base._req_status.get(request)
            if status is None:
                continue
            for key in keys:
                end = status.req_context.get_offload_key_position(OffloadKey(key))
                position = self.manager.position(key)
                state = status.group_states[position]
                group = self._base.config.kv_group_configs[position]
                if end is not None and group.sliding_window_size_in_chunks is None:
                    first = end // group.tokens_per_chunk - 1
                    state.next_stored_chunk_idx = min(state.next_stored_chunk_idx, first)
        self.manager.no_room.clear()

    def _acknowledge(self, job_id: int, count: int) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.ranks_left -= count
        if job.ranks_left <= 0:
            del self._jobs[job_id]
            self.brain.finish(job.plan, [job.keys[i] for i in job.failed])
