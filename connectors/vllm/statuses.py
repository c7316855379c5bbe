"""Requests as vLLM's own offloading scheduler has them: the one place that reaches into its table of them.

Groups are meant by their position in vLLM's lists, keys are in the order of their chunks.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
)
from vllm.v1.kv_offload.base import OffloadKey

from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.types import BlockKey

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        GroupOffloadConfig,
    )
    from vllm.multimodal.inputs import MultiModalFeatureSpec


class Statuses:
    """Reads vLLM's table of requests, and of its columns writes one: from where on chunks are offered for store."""

    def __init__(self, base: OffloadingConnectorScheduler) -> None:
        self._base = base
        self.groups: Sequence[GroupOffloadConfig] = base.config.kv_group_configs
        self._positions = {group.group_idx: i for i, group in enumerate(self.groups)}
        full = (i for i, g in enumerate(self.groups) if g.sliding_window_size_in_chunks is None)
        self.prefix_group = next(full, 0)
        """The group whose chunks stand for a whole prefix: the first of full attention."""

    @property
    def prefix_tokens(self) -> int:
        """Tokens of one chunk of the prefix group."""
        return self.groups[self.prefix_group].tokens_per_chunk

    def keys(self, request: str) -> list[list[BlockKey]]:
        """List all keys of a request, by group, also those that vLLM has not looked at yet."""
        status = self._base._req_status[request]
        status.update_offload_keys()
        return [[BlockKey(key) for key in state.offload_keys] for state in status.group_states]

    def media(self, request: str) -> "Sequence[MultiModalFeatureSpec]":
        """List the images, audio and video of a request."""
        return self._base._req_status[request].req.mm_features

    def fresh(self, request: str, known: Sequence[int]) -> Iterator[tuple[int, list[BlockKey]]]:
        """List the keys of each group beyond its first `known`, where there are any."""
        for i, state in enumerate(self._base._req_status[request].group_states):
            if len(state.offload_keys) > known[i]:
                yield i, [BlockKey(key) for key in state.offload_keys[known[i] :]]

    def needed(self, request: str, start: int, end: int) -> list[BlockKey]:
        """List the keys that a hit of tokens [start, end) loads: of a window group, only its window."""
        keys: list[BlockKey] = []
        status = self._base._req_status[request]
        for group, state in zip(self.groups, status.group_states, strict=True):
            first = start // group.tokens_per_chunk
            last = -(-end // group.tokens_per_chunk)
            window = group.load_window_size_in_chunks(end)
            if window is not None:
                first = max(first, last - window)
            keys += [BlockKey(key) for key in state.offload_keys[first:last]]
        return keys

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
            if end is not None and group.sliding_window_size_in_chunks is None:
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

    def slot_spec(
        self, plan: int | None, keys: Sequence[BlockKey], slots: Sequence[int]
    ) -> SlotSpec:
        """Say to the ranks which slots a plan's keys have, by group."""
        grouped: list[list[int]] = [[] for _ in self.groups]
        for key, slot in zip(keys, slots, strict=True):
            grouped[self._position(key)].append(slot)
        return SlotSpec(plan, tuple(map(tuple, grouped)))

    def _position(self, key: BlockKey) -> int:
        return self._positions[int.from_bytes(key[-4:], "big")]
