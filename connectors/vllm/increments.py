"""vLLM's own half of EngineCore made to do what changed: in each step it walks every request, and every block of each.

It is replaced only where its source is one that was read. Where it is not, it stays as vLLM has it.
"""

import copy
import hashlib
import inspect
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.utils import yield_req_data
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
    RequestOffloadState,
)
from vllm.v1.kv_offload.base import make_offload_key

from kvtier.connectors.vllm.guard import Guard

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

READ = {"917aa1a7cad4a75e": "0.31, 0.32", "4b2288c5068b76fc": "0.33"}
"""Fingerprints of the sources that were read, and the releases that have them."""


def install(base: OffloadingConnectorScheduler, guard: Guard) -> None:
    """Let vLLM's half do what changed, if its source is known; else leave it alone. Raises nothing."""
    try:
        found = fingerprint()
        if found in READ:
            object.__new__(RequestOffloadState).__class__ = IncrementalState  # where that works
            base.__class__ = IncrementalScheduler
            assert isinstance(base, IncrementalScheduler)
            base._guard = guard
            return
    except (OSError, TypeError, AttributeError) as exc:
        found = str(exc)
    logger.warning("kvtier: each step walks all requests: vLLM's source is not known (%s)", found)


def fingerprint() -> str:
    """Digest the source that the classes below stand in for, or count on, without its comments and spaces."""
    of = OffloadingConnectorScheduler
    functions = (
        of.on_new_request,
        of._update_req_states,
        of._build_store_jobs,
        of._calc_num_offloadable_tokens,
        yield_req_data,
        RequestOffloadState.update_offload_keys,
        RequestOffloadState.storable_chunks,
        RequestOffloadState.advance_stored_idx,
    )
    text = "".join(inspect.getsource(function) for function in functions)
    return hashlib.sha256(re.sub(r"#.*|\s+", "", text).encode()).hexdigest()[:16]


class IncrementalState(RequestOffloadState):
    """What vLLM knows of a request, that finds the keys of new blocks without a walk past all old ones."""

    __slots__ = ()

    def update_offload_keys(self) -> None:
        hashes = self.req.block_hashes
        for group, state in zip(self.config.kv_group_configs, self.group_states, strict=True):
            keys, per_chunk = state.offload_keys, group.hashes_per_chunk
            if len(hashes) < per_chunk * (len(keys) + 1):
                continue
            for last in hashes[per_chunk * (len(keys) + 1) - 1 :: per_chunk]:
                key = make_offload_key(last, group.group_idx)
                keys.append(key)
                end = len(keys) * group.tokens_per_chunk
                self.req_context.set_offload_key_position(key, end)


class IncrementalScheduler(OffloadingConnectorScheduler):
    """vLLM's half, that looks at a request where it got a block, and for chunks to store where it has any.

    A request's keys are found when they are asked for; of those that are not, nobody takes notice.
    """

    _guard: Guard

    def on_new_request(self, request: "Request") -> None:
        super().on_new_request(request)
        self._req_status[request.request_id].__class__ = IncrementalState

    def _update_req_states(self, scheduler_output: "SchedulerOutput") -> None:
        narrowed, everybody = copy.copy(scheduler_output), scheduler_output.scheduled_cached_reqs
        changed = partial(_changed, everybody)
        narrowed.scheduled_cached_reqs = self._guard.run(changed, everybody)
        super()._update_req_states(narrowed)

    def _build_store_jobs(self, scheduler_output: "SchedulerOutput") -> dict[int, Any]:
        narrowed, everybody = copy.copy(scheduler_output), scheduler_output.num_scheduled_tokens
        offering = partial(self._offering, scheduler_output)
        narrowed.num_scheduled_tokens = self._guard.run(offering, everybody)
        return super()._build_store_jobs(narrowed)

    def _offering(self, output: "SchedulerOutput") -> dict[str, int]:
        """Return the scheduled requests of which a chunk can be stored that was not offered yet: for the others
        vLLM does nothing.
        """
        finished = output.finished_req_ids or ()
        groups, statuses = self.config.kv_group_configs, self._req_status
        offering: dict[str, int] = {}
        for name, n in output.num_scheduled_tokens.items():
            status = statuses.get(name)
            if status is None:
                continue
            tokens = status.req.num_computed_tokens + n
            for group, state in zip(groups, status.group_states, strict=True):
                if tokens >= (state.next_stored_chunk_idx + 1) * group.tokens_per_chunk:
                    if self._offers(status, tokens):
                        offering[name] = n
                    break
            if name in finished:  # of another request of this name: vLLM looks here for it too
                offering[name] = n
        return offering

    def _offers(self, status: RequestOffloadState, tokens: int) -> bool:
        """Whether vLLM's own computation finds a chunk to offer after so many tokens."""
        status.update_offload_keys()
        offloadable = self._calc_num_offloadable_tokens(status, tokens)
        return any(
            status.storable_chunks(group, state, offloadable) > state.next_stored_chunk_idx
            for group, state in zip(self.config.kv_group_configs, status.group_states, strict=True)
        )


def _changed(requests: "CachedRequestData") -> "CachedRequestData":
    """Return those that got a block, or start again with those that they have."""
    changed, resumed = copy.copy(requests), requests.resumed_req_ids
    pairs = zip(requests.req_ids, requests.new_block_ids, strict=True)
    kept = [(name, blocks) for name, blocks in pairs if blocks is not None or name in resumed]
    changed.req_ids = [name for name, _ in kept]
    changed.new_block_ids = [blocks for _, blocks in kept]
    return changed
