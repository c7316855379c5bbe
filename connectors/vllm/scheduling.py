"""EngineCore's half of the connector: what `KVTierConnector` adds to vLLM's own scheduler hooks."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
)
from vllm.v1.kv_offload.base import (
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    TierFilter,
)
from vllm.v1.request import RequestStatus

from kvtier.brain import TieredCache, Why
from kvtier.config import Config, digest, of_rank
from kvtier.connectors.vllm import recovery, start
from kvtier.connectors.vllm.events import BlockEvents
from kvtier.connectors.vllm.hints import Complaints, Hints, comes_from_elsewhere
from kvtier.connectors.vllm.jobs import Jobs
from kvtier.connectors.vllm.live import Fetch, LiveRequest
from kvtier.connectors.vllm.manager import TieredCacheManager
from kvtier.connectors.vllm.media import MediaNames
from kvtier.connectors.vllm.messages import KVTierMetadata, KVTierWorkerMetadata, SlotSpec
from kvtier.connectors.vllm.namespace import Namespace
from kvtier.connectors.vllm.overwrites import Overwrites
from kvtier.connectors.vllm.permissions import Permissions
from kvtier.connectors.vllm.ranks import Ranks, agree
from kvtier.connectors.vllm.returns import Returns
from kvtier.connectors.vllm.roll_call import RollCall, steps_in_flight
from kvtier.connectors.vllm.speed import Speed
from kvtier.connectors.vllm.statuses import Statuses
from kvtier.connectors.vllm.watch import Watch
from kvtier.trace.recorder import Recorder
from kvtier.types import TIER0, BlockKey

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class Scheduling:
    """Drives the brain from vLLM's steps, and answers vLLM's questions about requests.

    Called from EngineCore's main thread only.
    """

    def __init__(
        self,
        config: Config,
        vllm_config: "VllmConfig",
        kv_cache_config: "KVCacheConfig",
        base: OffloadingConnectorScheduler,
    ) -> None:
        assert isinstance(base.manager, TieredCacheManager)
        self._manager = base.manager
        self.guard = base.manager.guard
        self._config = config
        self._vllm_config = vllm_config
        self.statuses = Statuses(base)
        self.guard.run(partial(self.statuses.end_hits_at_states, kv_cache_config), None)
        self._make_brain = partial(
            start.make_brain, overlap=config.overlap and recovery.by_blocks(kv_cache_config)
        )
        self._media = MediaNames(vllm_config)
        self._overwrites = Overwrites(vllm_config, kv_cache_config)
        self._ranks: Ranks | None = None
        self._brain: TieredCache | None = None
        self._recorder: Recorder | None = None
        self._roll_call = RollCall(
            vllm_config.parallel_config.world_size, steps_in_flight(vllm_config)
        )
        self.namespace = Namespace(config, vllm_config, kv_cache_config)
        self._live: dict[str, LiveRequest] = {}
        self._over: set[str] = set()  # of these, who has its last token
        self._computes = False  # in the last step
        self._permissions = Permissions(config, vllm_config, self._media)
        self._complaints = Complaints()
        self._jobs = Jobs()
        self._crowded_out: list[tuple[str, Sequence[BlockKey]]] = []  # in this step, by request
        self.watch = Watch(vllm_config.parallel_config.world_size, persist_lora=config.persist_lora)
        self._fail_loads = False
        self.events = BlockEvents(base)
        self.speed = Speed()
        self.meter, self.prompts = base.manager.meter, base.manager.prompts
        self.prompts.show([tier.name for tier in config.tiers])
        self.returns = Returns(getattr(vllm_config.kv_transfer_config, "engine_id", None))
        self.why_chunks = ""  # are as large as they are

    @property
    def ranks(self) -> Ranks:
        """The ranks, once they have said hello."""
        assert self._ranks is not None, "the ranks have not said hello"
        return self._ranks

    @property
    def brain(self) -> TieredCache:
        """The brain, once the ranks have said hello."""
        assert self._brain is not None, "the ranks have not said hello"
        return self._brain

    def unopened(self) -> bool:
        """Whether the engine owes us steps, in which the ranks say hello."""
        return self._brain is None

    def admit(self, request: "Request") -> None:
        """Take a request's `kv_transfer_params` away if they are no mapping: vLLM's own half, asked next, would end."""
        params = request.kv_transfer_params
        if params is not None and not isinstance(params, dict):
            request.kv_transfer_params = None
            self._complaints.about([f"expected a mapping, got a {type(params).__name__}"])

    def arrive(self, request: "Request") -> None:
        """Tell the brain a new request's keys, of every group, before anybody asks for them."""
        self.watch.adapters.arrived(request.request_id, request.lora_request)
        if self._brain is None:
            self._manager.early[request.request_id] = request
            return
        hints = Hints.of(request.kv_transfer_params, self._complaints)
        hints = hints.in_session(getattr(request, "session_id", None))  # vLLM has one from 0.32 on
        name = request.request_id
        groups = self.statuses.keys(name)
        may = self._permissions.of(request, hints)
        self._live[name] = LiveRequest(may, list(map(len, groups)))
        self.brain.arrive(name, groups, persist=may.persist, reads=may.reads, hints=hints.facts())
        if may.no_load:
            self.brain.refuse_load(name, may.no_load)
        if self._recorder is not None:
            keys, tokens = groups[self.statuses.prefix_group], request.num_prompt_tokens
            self._recorder.arrived(name, keys, tokens, hints.session_id)

    def finished(self, request: "Request") -> None:
        """Note that a request has its last token."""
        if request.request_id in self._live:
            self._over.add(request.request_id)
        if self._recorder is not None:
            self._recorder.departed(request.request_id, request.num_output_tokens)

    def close(self) -> None:
        """Leave nothing behind that still writes."""
        if self._recorder is not None:
            self._recorder.close()

    def reading(self, request: "Request", computed: int) -> bool:
        """Whether answers, or reads, for this request are under way, beyond what the device has of it; O(1)."""
        name = request.request_id
        if (live := self._live.get(name)) is None:
            return False
        live.reading = live.reading and not self.brain.ready(name)
        return live.reading or self.brain.asks.waits(name, computed)

    def sits_out(self, request: "Request") -> bool:
        """Whether a request waits for the next step because the coming one has yet to announce its preemption.

        A reset preempts running requests between two steps, and vLLM may resume them in the next one. In that step
        it takes every job of a preempted request for a store, so none of them may load. Before the ranks have said
        hello all wait, but for those that load nothing: vLLM does not let these wait.
        """
        if self._brain is None:
            return not request.skip_reading_prefix_cache
        live = self._live.get(request.request_id)
        if live is None or not live.scheduled or request.status != RequestStatus.PREEMPTED:
            return False
        live.scheduled = False
        return True

    def asked(self, request: "Request", computed: int) -> None:
        """Note that vLLM asks for a hit, and how many tokens the device's own cache has."""
        if (live := self._live.get(request.request_id)) is not None:
            live.computed = computed
            live.elsewhere = comes_from_elsewhere(request)

    def scheduled(self, request: "Request", loaded: int) -> None:
        """Find out, once, why `loaded` tokens are all that a request loads; at debug level say it."""
        if (live := self._live.get(request.request_id)) is not None and not live.scheduled:
            live.scheduled, live.away = True, False
            why = self.brain.fell_short(request.request_id, live.computed + loaded)
            start.say_hit(request, loaded, why)

    def admitted(self, request: "Request", loaded: int) -> None:
        """Note where the `loaded` tokens of a request come from."""
        brain = Why.OFF if self.guard.broken else self._brain or Why.OPENING
        self.prompts.admit(request, loaded, self._live.get(request.request_id), brain)

    def fetch(self, request: "Request", computed: int, hit: int) -> Fetch:
        """Pin a hit of `hit` tokens after `computed`, or order the reads that it needs."""
        name = request.request_id
        keys = self.statuses.needed(name, computed, computed + hit, self.brain)
        self.brain.end_inside(name, self.statuses.ends_inside(name, keys))
        plan = self.brain.plan_read(name, keys)
        if plan is None:
            return Fetch.PINNED
        if not plan.reading:
            return Fetch.SHORTER
        live = self._live[name]
        live.below.update(self.brain.view.coming(name))
        live.reading = True
        return Fetch.READING

    def lookup(self, key: BlockKey, context: ReqContext) -> bool:
        """Whether a request may count on a chunk."""
        name = context.req_id
        if self._brain is None or not self._brain.lookup(name, key):
            return False
        live = self._live.get(name)
        if live is not None and (live.elsewhere or live.may.no_load):
            return False
        why = self._forbidden(key, context, live)
        if why:
            self.brain.refuse_load(name, why)
        return why is None

    def _forbidden(
        self, key: BlockKey, context: ReqContext, live: LiveRequest | None
    ) -> Why | None:
        """Say why a request may not load a chunk that is there; what was read for it came from a tier that it wants."""
        if live is not None and live.loaded:
            return Why.FAILED  # its load did, else nobody would ask again
        if not self.watch.adapters.may_load(context.req_id):
            return Why.ADAPTER
        wanted = context.load_tier_filter
        if wanted is TierFilter.ALL or (live is not None and key in live.below):
            return None
        holds = self.brain.view.holds
        found = any(holds(tier, key) for tier in self._permissions.tiers(wanted))
        return None if found else Why.TIER_FILTER

    def source(self, key: BlockKey, request: str) -> int:
        """Return the tier that a chunk of a request's hit came from: one below tier 0 if it was read for it."""
        live = self._live.get(request)
        return TIER0 if live is None else live.below.get(key, TIER0)

    def on_disk(self, key: BlockKey, request: str) -> bool:
        """Whether that tier is no memory."""
        return self._permissions.on_disk(self.source(key, request))

    def load(self, keys: tuple[BlockKey, ...], request: str) -> SlotSpec:
        """Give the slots of a hit to copy to the device."""
        self._jobs.trace.hit(request)
        plan = self.brain.plan_load(request, keys)
        if (live := self._live.get(request)) is not None:
            live.loaded = True
            live.loads = self.statuses.ends(request, keys) if live.below else []
        self._jobs.plan(plan.plan_id, keys)
        return self.statuses.load_spec(plan, keys)

    def store(self, keys: Sequence[BlockKey], request: str) -> PrepareStoreOutput:
        """Give slots to as many chunks as fit; what only lacks room is offered again at the end of the step."""
        live = self._live.get(request)
        if why := self._unstorable(request, live):
            self.brain.refuse_store(request, len(keys), why)
            return PrepareStoreOutput([], SlotSpec(None, ()), [])
        if live is not None:
            self._tell(request, live)
        self.brain.end_inside(request, self.statuses.ends_inside(request, keys))
        plan = self.brain.plan_store(request, keys)
        if plan.no_room:
            self._crowded_out.append((request, plan.no_room))
        if plan.keys:
            self._jobs.plan(plan.plan_id, plan.keys, self.watch.adapters.key(request))
        spec = self.statuses.slot_spec(plan.plan_id, plan.keys, plan.slots)
        return PrepareStoreOutput([OffloadKey(key) for key in plan.keys], spec, [])

    def _unstorable(self, request: str, live: LiveRequest | None) -> Why | None:
        """Say why nothing of a request is stored."""
        if not self.watch.device.clean:
            return Why.STALE
        if not self.watch.adapters.may_store(request):
            return Why.ADAPTER
        return live.no_store if live is not None else None

    def depart(self, request: str) -> None:
        """Forget a request."""
        self.watch.departed(request)
        self._live.pop(request, None)
        self._over.discard(request)
        self.brain.depart(request)

    def preempted(self, requests: Iterable[str]) -> None:
        """Note which requests start again from nothing."""
        for request in requests:
            self.brain.preempted(request)
            if (live := self._live.get(request)) is not None:
                live.preempt()

    def awake(self) -> bool:
        """Whether the engine must step on for the brain's sake."""
        return self.brain.awake()

    def stats(self) -> "OffloadingConnectorStats | None":
        """Report what changed since the last time, if it is time to; None if nothing did."""
        resting = not self._computes or len(self._over) == len(self._live)
        return self.meter.collect(self.brain.stats()) if self.meter.due(resting=resting) else None

    def step(self, output: "SchedulerOutput", meta: KVTierMetadata) -> None:
        """End a step: adopt vLLM's new jobs, offer again what had no room, take the brain's operations."""
        self.watch.order(meta, output)
        self._computes = not meta.idle
        if self._brain is None:
            self._roll_call.ask()
            meta.greet = True
            return
        self._jobs.begin(meta, len(self.ranks.hellos), output)
        for request, refused in self._crowded_out:
            if request in self._live:
                self.statuses.offer_again(request, refused)
        self._crowded_out.clear()
        if self.watch.touched and self.namespace.leaves(self.watch.touched):
            self.brain.leave_shared()
        meta.ops, meta.round = self.brain.drain(), self.brain.asks.handed
        meta.fail_loads, self._fail_loads = self._fail_loads, False
        meta.spoiled = self._overwrites.spoiled(output, meta.jobs_to_flush)
        meta.timed = self.speed.begin(output.total_num_scheduled_tokens)

    def hear(self, meta: KVTierWorkerMetadata) -> None:
        """Take what the ranks report: answers first, so that a failure is known before its job ends."""
        if meta.broken:
            self.guard.trip(f"a worker is off: {meta.broken}")
            return
        self.meter.place(meta.placed)
        self.meter.spent(meta.io_seconds)
        self.watch.hear(meta)
        complete = self._roll_call.hear(meta.hellos)
        if self._brain is None:
            if complete:
                self._open(agree(self._roll_call.hellos, digest(self._config)))
            return
        for batch in meta.scans:
            self.brain.scanned(batch)
        self.brain.complete(meta.results)
        self.brain.asks.heard(meta.round)
        load, store = meta.transfer_stats.load, meta.transfer_stats.store
        if load.time or store.time:
            self.brain.transferred(load.bytes, load.time, store.bytes, store.time)
        for job in self._jobs.end(meta):
            keeps = self.watch.adapters.keeps(job.adapter)
            self.brain.finish(job.plan, job.failed_keys() if keeps else job.keys)
            if job.request and job.failed:
                first = self.statuses.first_token(job.request, job.failed_keys())
                self.prompts.lost(job.request, first)
        if sample := self.speed.end(meta.timed):
            self.brain.prefilled(*sample)

    def cancel(self, request: str) -> None:
        """Forget what was being read for a request that ended."""
        if (live := self._live.get(request)) is not None:
            live.reading = False
            self.brain.cancel(request)

    def reset(self, *, emptied: bool, noticed: bool = False) -> None:
        """Begin a new epoch. Requests whose KV is of the old one are not stored until they are preempted.

        Unless the device's own cache was `emptied`, it may give KV of the old epoch to any request: then
        nothing is stored until it is. Nobody asked for it where it was `noticed` that weights were changed.
        """
        if noticed and self._brain is not None:
            self.brain.weights_changed()
        self.watch.reset(emptied=emptied, noticed=noticed)
        for live in self._live.values():
            live.reading = False
        self._fail_loads = True
        if self._brain is not None:
            self._forget()

    def forsake(self, meta: KVTierMetadata) -> None:
        """Carry a reset out with kvtier off: no load of the old epoch ends well, no record of it stays."""
        meta.fail_loads, meta.ops = True, self.namespace.forsaken()

    def _forget(self) -> None:
        self.brain.reset(self.namespace.fresh(), stale=self.statuses.begun())

    def _open(self, ranks: Ranks) -> None:
        """Make the brain that fits the ranks, open its tiers, and tell it what came before."""
        mine = of_rank(self._config, ranks.local_ranks, copies=ranks.copies)
        brain = self._make_brain(mine, ranks, self.statuses, self._vllm_config)
        self._recorder = start.make_recorder(self._config, self.statuses, self._vllm_config)
        self._ranks, self._brain = ranks, brain
        brain.open(ranks.slots, self.namespace.first(ranks), shared=self.namespace.shared)
        self._manager.serve(self)
        self.watch.adapters.only(self._manager.early.keys())
        for name, request in self._manager.early.items():
            self.arrive(request)
            self._live[name].away = request.status.name == "PREEMPTED"
        if self.namespace.ended_early:
            self._forget()
        self.meter.introduce(self.statuses.prefix_tokens, len(ranks.hellos), self.namespace.name)
        start.announce(mine, ranks, self.statuses, self.why_chunks)

    def _tell(self, request: str, live: LiveRequest) -> None:
        """Tell the brain the keys that came since: decoded chunks, or more of a streamed prompt and its media."""
        for i, keys in self.statuses.fresh(request, live.told):
            persist = self._media.last(self.statuses.media(request))
            self.brain.extend(request, i, keys, persist=persist)
            live.told[i] += len(keys)
