"""vLLM's real scheduler and both halves of the connector around KV caches on the host, and no model.

Where a model would compute, each token's bytes are written into the pages of every layer, such as only this token after
this prefix has; where a model would read, they are compared. A state (Mamba) is that of its whole prefix. So a wrong, old
or missing chunk fails the step that reads it, for every kind of cache that vLLM has a spec for.
"""

import copy
import hashlib
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import (
    generate_scheduler_kv_cache_config,
    get_kv_cache_configs,
    get_request_block_hasher,
    init_none_hash,
    resolve_kv_cache_block_sizes,
)
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.utils import allocate_kv_cache

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.demo.server import kv_transfer_config
from tests.patience import HANG_S

VOCAB = 500


@dataclass
class Row:
    """A request as a worker has it."""

    tokens: list[int]
    blocks: list[list[int]]  # by group
    computed: int
    state: int  # the place of the block that holds the running state of every Mamba group
    names: list[bytes] = field(default_factory=list)

    def prefix(self, end: int) -> bytes:
        """Name the first `end` tokens."""
        while len(self.names) < end:
            last = self.names[-1] if self.names else b""
            token = self.tokens[len(self.names)].to_bytes(4, "big")
            self.names.append(hashlib.blake2b(last + token, digest_size=16).digest())
        return self.names[end - 1]


class Part(NamedTuple):
    """Which tokens of a sequence a rank keeps, where ranks share a context: each rank's in turn."""

    ranks: int = 1
    rank: int = 0


class Memory:
    """The pages of one worker: what a model would write and read."""

    def __init__(self, cache_config: Any, layout: Any, owner: str, part: Part) -> None:
        self._owner, self._part = owner, part
        self.caches = allocate_kv_cache(cache_config, torch.device("cpu"), layout)
        self._layers = [
            (index, name, group.kv_cache_spec, self.caches[name].view(torch.uint8))
            for index, group in enumerate(cache_config.kv_cache_groups)
            for name in group.layer_names
        ]

    def run(self, row: Row, count: int) -> None:
        """Read what the tokens after `row.computed` attend to, then write `count` of them."""
        for group, name, spec, cache in self._layers:
            owned = f"{self._owner}: {name}"
            if isinstance(spec, MambaSpec):
                _run_state(row, count, row.blocks[group], owned, spec, cache)
                continue
            part = self._part if spec.dcp_sharded else Part()
            _run_tokens(row, count, row.blocks[group], owned, spec, cache, part)


def _run_tokens(
    row: Row, count: int, blocks: list[int], name: str, spec: Any, cache: torch.Tensor, part: Part
) -> None:
    start, end, size = row.computed, row.computed + count, spec.block_size * part.ranks
    first = _first_read(spec, start)
    for place in range(first // size, -(-end // size)):
        page, base = cache[blocks[place]], place * size
        of_all = range(max(first, base), min(end, base + size))
        tokens = [at for at in of_all if at % part.ranks == part.rank]
        if not tokens:
            continue
        right = [_bytes(row.prefix(at + 1), name, page[:, 0].shape) for at in tokens]
        begin = (tokens[0] - base) // part.ranks
        held = page[:, begin : begin + len(tokens)]
        known = sum(at < start for at in tokens)
        whole = torch.stack(right, dim=1)
        assert torch.equal(held[:, :known], whole[:, :known]), f"{name}: other KV in block {place}"
        held[:, known:] = whole[:, known:]


def _run_state(
    row: Row, count: int, blocks: list[int], name: str, spec: Any, cache: torch.Tensor
) -> None:
    end, size = row.computed + count, spec.block_size
    if row.computed:
        page = cache[blocks[row.state]]
        right = _bytes(row.prefix(row.computed), name, page.shape)
        assert torch.equal(page, right), f"{name}: not the state after {row.computed} tokens"
    last = (end - 1) // size
    ends = {last: end}
    if spec.mamba_cache_mode == "all":
        ends |= {place: (place + 1) * size for place in range(row.computed // size, last)}
    for place, at in ends.items():
        cache[blocks[place]] = _bytes(row.prefix(at), name, cache[0].shape)


class NoModelEngine:
    """An engine of a model whose layers have these specs: all of them on each rank, or on each stage those it has."""

    def __init__(
        self,
        model: Path,
        specs: Mapping[str, KVCacheSpec],
        kvtier: Mapping[str, object],
        *,
        blocks: int = 64,
        stages: Sequence[Mapping[str, KVCacheSpec]] = (),
        **options: Any,
    ) -> None:
        init_none_hash(sha256)
        config = EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            load_format="dummy",
            max_model_len=320,
            kv_transfer_config=kv_transfer_config(kvtier),
            **options,
        ).create_engine_config()
        _as_on_a_gpu(config, specs)
        config.cache_config.num_gpu_blocks_override = blocks
        ranks = config.parallel_config.world_size
        held = [dict(each) for each in stages or [specs] * ranks]
        made = get_kv_cache_configs(config, held, [1 << 30] * ranks)
        self.cache_config = generate_scheduler_kv_cache_config(made)
        config.cache_config.num_gpu_blocks = blocks
        self._block_size, hashed = resolve_kv_cache_block_sizes(self.cache_config, config)
        self._hasher = get_request_block_hasher(hashed, sha256)
        with set_current_vllm_config(config):
            self.scheduler = Scheduler(
                config,
                self.cache_config,
                StructuredOutputManager(config),
                block_size=self._block_size,
                hash_block_size=hashed,
            )
            self.workers = [_worker(config, rank, each) for rank, each in enumerate(made)]
        layout = config.cache_config.get_resolved_kv_cache_layout()
        same = self.cache_config.kv_tp_replicas == ranks > 1
        shared = config.parallel_config.decode_context_parallel_size
        self._memories = [
            Memory(each, layout, "all" if same else str(rank), Part(shared, rank % shared))
            for rank, each in enumerate(made)
        ]
        for worker, memory in zip(self.workers, self._memories, strict=True):
            worker.register_kv_caches(memory.caches)
        self._aggregator = KVOutputAggregator(ranks)
        self._rows: dict[str, Row] = {}
        self._cached: dict[str, int] = {}
        self.preempted = 0
        self._asked = 0

    @property
    def connector(self) -> Any:
        """EngineCore's half."""
        return self.scheduler.connector

    def ask(self, *prompts: Sequence[int], tokens: int = 4) -> list[int]:
        """Answer these prompts at once, and return how many tokens of each were not computed."""
        requests = [self.queue(prompt, tokens) for prompt in prompts]
        end = time.monotonic() + HANG_S
        while not all(request.is_finished() for request in requests):
            assert time.monotonic() < end, "requests do not end"
            self.step()
        return [self.cached(request) for request in requests]

    def queue(self, prompt: Sequence[int], tokens: int = 4) -> Request:
        """Queue a request."""
        request = self.request(prompt, tokens)
        self.scheduler.add_request(request)
        return request

    def request(self, prompt: Sequence[int], tokens: int = 4) -> Request:
        """Make a request that nobody knows of yet."""
        self._asked += 1
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
        return Request(str(self._asked), list(prompt), params, None, block_hasher=self._hasher)

    def cached(self, request: Request) -> int:
        """Return how many tokens of a request that has ended were not computed."""
        return self._cached.pop(request.request_id)

    def settle(self) -> None:
        """Step until all that was ordered is done."""
        end = time.monotonic() + HANG_S
        while (
            self.connector.has_pending_push_work() or self.connector.scheduling.brain.view.pending()
        ):
            assert time.monotonic() < end, self.connector.scheduling.brain.view.pending()
            self.step()
        for _ in range(4):
            self.step()

    def reset(self) -> None:
        """Empty the device's own cache."""
        self.settle()
        assert self.scheduler.reset_prefix_cache()

    def step(self) -> None:
        """One step of the scheduler and the worker."""
        out = self.scheduler.schedule()
        self.scheduler.update_from_output(out, self.execute(out))

    def execute(self, out: Any) -> ModelRunnerOutput:
        """Do what the scheduler says, in the order of vLLM's model runner."""
        sent = pickle.dumps(out.kv_connector_metadata)  # each worker changes its own
        told = [(worker, pickle.loads(sent)) for worker in self.workers]
        for worker, meta in told:
            worker.handle_preemptions(meta)
        self._update(out)
        for worker, meta in told:
            worker.bind_connector_metadata(meta)
        sampled = [self._compute(name, n) for name, n in out.num_scheduled_tokens.items()]
        results = [
            ModelRunnerOutput(
                req_ids=list(out.num_scheduled_tokens),
                req_id_to_index={name: i for i, name in enumerate(out.num_scheduled_tokens)},
                sampled_token_ids=sampled,
                kv_connector_output=_told(worker, out.finished_req_ids),
            )
            for worker in self.workers
        ]
        return self._aggregator.aggregate(results)

    def close(self) -> None:
        """End it."""
        for worker in self.workers:
            worker.shutdown()
        self.connector.shutdown()

    def _update(self, out: Any) -> None:
        """Take what the scheduler says of the requests, as a model runner does."""
        self.preempted += len(out.preempted_req_ids or ())
        for name in out.finished_req_ids:
            self._rows.pop(name, None)
        for new in out.scheduled_new_reqs:
            self._cached[new.req_id] = new.num_computed_tokens
            tokens = list(new.prompt_token_ids)
            self._begin(new.req_id, tokens, new.block_ids, new.num_computed_tokens)
        told = out.scheduled_cached_reqs
        for name, blocks, computed in zip(
            told.req_ids, told.new_block_ids, told.num_computed_tokens, strict=True
        ):
            row = self._rows[name]
            if name in told.resumed_req_ids:
                self._begin(name, row.tokens, blocks, computed)
                continue
            row.computed = computed
            for mine, more in zip(row.blocks, blocks or (), strict=False):
                mine.extend(more)

    def _begin(self, name: str, tokens: list[int], blocks: Any, computed: int) -> None:
        state = (computed - 1) // self._block_size
        self._rows[name] = Row(tokens, [list(each) for each in blocks], computed, state)

    def _compute(self, name: str, count: int) -> list[int]:
        row = self._rows[name]
        for memory in self._memories:
            memory.run(row, count)
        row.state = (row.computed + count - 1) // self._block_size
        if row.computed + count < len(row.tokens):
            return []
        row.tokens.append(int.from_bytes(row.prefix(len(row.tokens))[:4], "big") % VOCAB)
        return row.tokens[-1:]


def _worker(config: Any, rank: int, cache_config: Any) -> KVTierConnector:
    mine = copy.copy(config)
    mine.parallel_config = copy.copy(config.parallel_config)
    mine.parallel_config.rank = rank
    made: object = KVTierConnector(mine, KVConnectorRole.WORKER, cache_config)
    assert isinstance(made, KVTierConnector), "kvtier is off"
    return made


def _told(worker: KVTierConnector, finished: set[str]) -> KVConnectorOutput:
    """End a worker's step, and take what it reports."""
    worker.start_load_kv(None)
    worker.wait_for_save()
    results = worker.get_transfer_results(finished)
    told = KVConnectorOutput(
        finished_sending=results.finished_sending,
        finished_recving=results.finished_recving,
        failed_recving=results.failed_recving,
        invalid_block_ids=worker.get_block_ids_with_load_errors(),
        kv_connector_worker_meta=worker.build_connector_worker_meta(),
    )
    worker.clear_connector_metadata()
    return told


def _as_on_a_gpu(config: Any, specs: Mapping[str, KVCacheSpec]) -> None:
    """Take back what vLLM's CPU platform has decided for want of kernels: none is called here."""
    config.cache_config.enable_prefix_caching = True
    config.cache_config.kv_cache_layout = "LBHNC"
    config.scheduler_config.enable_chunked_prefill = True
    config.cache_config.block_size = min(spec.block_size for spec in specs.values())
    states = [spec for spec in specs.values() if isinstance(spec, MambaSpec)]
    if states:
        config.cache_config.mamba_cache_mode = states[0].mamba_cache_mode
        config.cache_config.mamba_block_size = states[0].block_size


def _first_read(spec: KVCacheSpec, position: int) -> int:
    """The first token that the token at `position` attends to."""
    if isinstance(spec, SlidingWindowSpec):
        return max(0, position - int(spec.sliding_window) + 1)
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return position - position % int(spec.attention_chunk_size)
    return 0


@lru_cache(1 << 16)
def _bytes(prefix: bytes, layer: str, shape: torch.Size) -> torch.Tensor:
    seed = hashlib.blake2b(prefix + layer.encode(), digest_size=64).digest()
    count = shape.numel()
    return torch.frombuffer(bytearray(seed * (count // 64 + 1)), dtype=torch.uint8)[:count].view(
        shape
    )
