"""Requests as vLLM's own offloading scheduler has them: the one place that reaches into its table of them.

Groups are meant by their position in vLLM's lists, keys are in the order of their chunks. Nothing is read before it
is asked for: what another release does not have is missed inside the guard.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
)
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, make_offload_key

from kvtier.brain import LoadPlan, TieredCache
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.types import BlockKey

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        GroupOffloadConfig,
        RequestOffloadState,
    )
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

    Offer = tuple[int, int, int]  # group, block, and the token before which its part ends

_HIT = LookupResult.HIT


class Statuses:
    """Reads vLLM's table of requests, and writes two things: from where on a request's chunks are offered for
    store, and where hits may end.
    """

    def __init__(self, base: OffloadingConnectorScheduler) -> None:
        self._base = base

    @cached_property
    def groups(self) -> "Sequence[GroupOffloadConfig]":
        """The KV-cache groups, as vLLM has them."""
        found: Sequence[GroupOffloadConfig] = self._base.config.kv_group_configs
        return found

    @cached_property
    def prefix_group(self) -> int:
        """The group whose chunks stand for a whole prefix: the first of full attention."""
        full = (i for i, g in enumerate(self.groups) if g.sliding_window_size_in_chunks is None)
        return next(full, 0)

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {group.group_idx: i for i, group in enumerate(self.groups)}

    def end_hits_at_states(self, kv_cache_config: "KVCacheConfig") -> None:
        """Let a hit end where every Mamba layer has a state, and before a request's last token, which is computed again.

        vLLM itself sees to that where the states are those of prompts' last blocks (`align`), not where each block has
        one (`all`): there a hit of a whole prompt would compute its last token on the state that has that token already.
        """
        specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        modes = [getattr(specs[group.group_idx], "mamba_cache_mode", "") for group in self.groups]
        ends = [g.tokens_per_chunk for g, mode in zip(self.groups, modes, strict=True) if mode]
        if "all" in modes:
            self._base._mamba_align_size = math.lcm(self._base._mamba_align_size or 1, *ends)

    @property
    def prefix_tokens(self) -> int:
        """Tokens of one chunk of the prefix group."""
        return self.groups[self.prefix_group].tokens_per_chunk

    def keys(self, request: str) -> list[list[BlockKey]]:
        """List all keys of a request, by group, also those that vLLM has not looked at yet."""
        status = self._base._req_status[request]
        status.update_offload_keys()
        return cast(
            "list[list[BlockKey]]", [list(state.offload_keys) for state in status.group_states]
        )

    def media(self, request: str) -> "Sequence[MultiModalFeatureSpec]":
        """List the images, audio and video of a request."""
        return self._base._req_status[request].req.mm_features

    def fresh(self, request: str, known: Sequence[int]) -> Iterator[tuple[int, list[BlockKey]]]:
        """List the keys of each group beyond its first `known`, where there are any."""
        for i, state in enumerate(self._base._req_status[request].group_states):
            if len(state.offload_keys) > known[i]:
                yield i, [BlockKey(key) for key in state.offload_keys[known[i] :]]

    def needed(self, request: str, start: int, end: int, brain: TieredCache) -> list[BlockKey]:
        """List the keys that a hit of tokens [start, end) loads: of a window group, only its window.

        Where the hit ends inside a chunk, the last key of each group is of the part before that end. vLLM searches such
        a hit behind whole chunks: a window group has to have also the last whole one that the brain has.
        """
        keys: list[BlockKey] = []
        status = self._base._req_status[request]
        inside = status.partial_tail_boundary == end
        for group, state in zip(self.groups, status.group_states, strict=True):
            first = start // group.tokens_per_chunk
            last = -(-end // group.tokens_per_chunk) - inside
            window = (
                2 if inside else group.load_window_size_in_chunks(end)
            )  # drafts search one back
            windowed = group.sliding_window_size_in_chunks is not None
            if windowed:
                first = max(first, last - window)
            whole = [BlockKey(key) for key in state.offload_keys[first:last]]
            if windowed and inside:
                whole = [key for key in reversed(whole) if brain.lookup(request, key)][:1]
            keys += whole
            if inside:
                keys.append(self._part(status, group.group_idx, end))
        return keys

    def ends_inside(self, request: str, keys: Sequence[BlockKey]) -> dict[BlockKey, int]:
        """Name those of `keys` that end inside a chunk, and at which token: the states of hybrid models have such."""
        if not self._base.config.supports_partial_tail:
            return {}
        end_of = self._base._req_status[request].req_context.get_offload_key_position
        ends = ((key, end_of(OffloadKey(key)) or 0) for key in keys)
        return {key: end for key, end in ends if end % self.prefix_tokens}

    def ends(self, request: str, keys: Iterable[BlockKey]) -> list[tuple[BlockKey, int]]:
        """List those of `keys` that are of the prefix group, in order, each with the token at which it ends."""
        end_of = self._base._req_status[request].req_context.get_offload_key_position
        prefix = self.groups[self.prefix_group].group_idx.to_bytes(4, "big")
        return [(key, end_of(OffloadKey(key)) or 0) for key in keys if key[-4:] == prefix]

    def first_token(self, request: str, keys: Iterable[BlockKey]) -> int:
        """Return where the first of these chunks of a request begins; 0 where the request is gone."""
        if request not in self._base._req_status:
            return 0
        ends = [end for _, end in self.ends(request, keys)]
        return (min(ends, default=1) - 1) // self.prefix_tokens * self.prefix_tokens

    def within_limits(self, output: "SchedulerOutput") -> "SchedulerOutput":
        """Return a step as vLLM's own half may see it: without the parts that are handed over of requests beyond their
        `max_offload_tokens`, since that half ends on them. Other connectors go on seeing all of `output`.
        """
        state = output.kv_connector_block_state
        if not (
            state and state.boundary_state_offloads and self._base.config.supports_partial_tail
        ):
            return output
        offers = state.boundary_state_offloads
        allowed = {request: self._allowed(request, offers[request]) for request in offers}
        if allowed == offers:
            return output
        seen = copy(output)
        seen.kv_connector_block_state = replace(state, boundary_state_offloads=allowed)
        return seen

    def shares_load(self, request: "Request", computed: int) -> bool:
        """Whether the first chunk that a request would load is being loaded for another: vLLM then looks up all of
        its chunks, and lets it wait. O(1); no where that chunk alone does not decide it.
        """
        loading = self._base._chunks_being_loaded
        status, group = self._base._req_status[request.request_id], self.groups[0]
        if not loading or len(self.groups) > 1 or group.sliding_window_size_in_chunks is not None:
            return False
        if group.is_eagle_group or status.max_load_tokens is not None or status.transfer_jobs:
            return False
        keys, tokens = status.group_states[0].offload_keys, group.tokens_per_chunk
        if request.skip_reading_prefix_cache or len(keys) * tokens < computed + tokens:
            return False
        key = keys[computed // tokens]
        return key in loading and self._base.manager.lookup(key, status.req_context) is _HIT

    def join_loaded(self, request: "Request", source: Callable[[BlockKey, str], int]) -> None:
        """Make one range of neighbours that were loaded from one source: vLLM sorts the ends of all to add them up."""
        name = request.request_id
        ranges = self._base._req_status[name].load_key_ranges
        joined: list[tuple[int, int, OffloadKey]] = []
        last = None
        for low, high, key in ranges:
            from_ = source(BlockKey(key), name)
            if joined and from_ is last and joined[-1][1] == low:
                joined[-1] = (joined[-1][0], high, joined[-1][2])
            else:
                joined.append((low, high, key))
            last = from_
        ranges[:] = joined

    def offer_again(self, request: str, keys: Sequence[BlockKey]) -> None:
        """Rewind vLLM's store index to the first of these chunks.

        Not for window groups: their blocks are freed, and used by others, while a chunk waits.
        """
        status = self._base._req_status.get(request)
        if status is None:
            return
        for key in keys:
            end = status.req_context.get_offload_key_position(OffloadKey(key))
            state = status.group_states[self._position(key)]
            group = self.groups[self._position(key)]
            windowed = group.sliding_window_size_in_chunks is not None
            if end is not None and not windowed and end % group.tokens_per_chunk == 0:
                first = end // group.tokens_per_chunk - 1
                state.next_stored_chunk_idx = min(state.next_stored_chunk_idx, first)

    def begun(self) -> list[str]:
        """Name the requests that have KV, or copies under way."""
        statuses = self._base._req_status.items()
        return [name for name, s in statuses if s.req.num_computed_tokens or s.transfer_jobs]

    def take_flushes(self) -> set[int]:
        """Take the jobs that the next step is to flush."""
        due, self._base._current_batch_jobs_to_flush = (
            self._base._current_batch_jobs_to_flush,
            set(),
        )
        return due

    def give_flushes(self, due: set[int]) -> None:
        """Give them back, to what came in the meantime."""
        self._base._current_batch_jobs_to_flush |= due

    def load_spec(self, plan: LoadPlan, keys: Sequence[BlockKey]) -> SlotSpec:
        """Say to the ranks where a hit's chunks are, and which READs bring those that are not there yet."""
        spec = self.slot_spec(plan.plan_id, keys, plan.slots)
        return SlotSpec(spec.plan, spec.slots, plan.reads, plan.patience_s)

    def slot_spec(
        self, plan: int | None, keys: Sequence[BlockKey], slots: Sequence[int]
    ) -> SlotSpec:
        """Say to the ranks which slots a plan's keys have, by group."""
        grouped: list[list[int]] = [[] for _ in self.groups]
        for key, slot in zip(keys, slots, strict=True):
            grouped[self._position(key)].append(slot)
        return SlotSpec(plan, tuple(map(tuple, grouped)))

    def _allowed(self, request: str, offers: "Sequence[Offer]") -> "list[Offer]":
        status = self._base._req_status.get(request)
        most = status.max_offload_tokens if status else None
        return [offer for offer in offers if most is None or offer[2] <= most]

    def _part(self, status: "RequestOffloadState", group: int, end: int) -> BlockKey:
        """Return the key of a group's part before `end`; from 0.33 on, drafts are sure of it a few tokens later."""
        margin = getattr(self._base, "_eagle_proof_margins", {}).get(group, 0)
        last = (end + margin) // self._base.config.tokens_per_hash - 1
        return BlockKey(make_offload_key(status.req.block_hashes[last], group))

    def _position(self, key: BlockKey) -> int:
        return self._positions[int.from_bytes(key[-4:], "big")]
