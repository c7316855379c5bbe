"""vLLM's real scheduler with one connector or none, and a worker that copies nothing.

A request's blocks are named, not hashed, so that a million tokens cost no time. What a step costs is the thread's
processor time in `schedule` and `update_from_output`: all that EngineCore does but for messages to other processes.
"""

import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from vllm.config import KVTransferConfig, set_current_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from kvtier.config import digest, load
from kvtier.connectors.vllm import plugin
from kvtier.connectors.vllm.looks import Looked
from kvtier.connectors.vllm.messages import KVTierWorkerMetadata
from kvtier.connectors.vllm.ranks import Hello
from kvtier.connectors.vllm.weights import Weights
from kvtier.types import OpKind, OpResult, OpStatus, ScanBatch

BLOCK = 16
LAYERS, KV_HEADS, HEAD = 32, 8, 128
TOKEN_NBYTES = 2 * LAYERS * KV_HEADS * HEAD * 2  # of an 8B model in bf16: 128 KiB
MAX_LEN = 1 << 18
SCAN = 8192  # records of one batch

_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "num_hidden_layers": LAYERS,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": MAX_LEN,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


class Names(NamedTuple):
    """What the blocks of a prompt are called: of the first `shared` tokens by one name, of the rest by another."""

    own: str
    prefix: str = ""
    shared: int = 0

    def hashes(self, start: int, end: int) -> list[bytes]:
        """Name blocks as a hash would, 32 bytes each."""
        last = self.shared // BLOCK
        return [
            f"{self.prefix if i < last else self.own}:{i}".encode().ljust(32, b".")
            for i in range(start, end)
        ]


class _Due(NamedTuple):
    """What the worker says in a later step."""

    step: int
    jobs: list[int]
    results: list[OpResult]
    loading: set[str]


class Engine:
    """One scheduler and the worker that it believes to have."""

    def __init__(  # noqa: PLR0913 - a rig's knobs, by name
        self,
        connector: str,
        *,
        blocks: int,
        chunk_tokens: int = 256,
        slots: int = 1 << 14,
        tiers: Sequence[Mapping[str, object]] = (),
        max_seqs: int = 1024,
        batched_tokens: int = MAX_LEN,
        window: int = 0,
        eagle: bool = False,
        load_steps: int = 1,
        found: Sequence[bytes] = (),
        clock: Callable[[], float] = time.thread_time,
        **more: object,
    ) -> None:
        """Make it with `connector` none, vllm or kvtier, whose DRAM holds `slots` chunks.

        A load takes `load_steps`, and the first tier below DRAM has the records `found` when it opens. With a `window`
        there is a second KV-cache group, with `eagle` the first is a draft model's; `more` is kvtier's configuration.
        """
        self.chunk_nbytes = chunk_tokens * TOKEN_NBYTES
        self.load_steps = load_steps
        self.found = found
        self.clock = clock
        self._ours = connector == "kvtier"
        self._under_way: deque[_Due] = deque()
        self._listed: deque[ScanBatch] = deque()
        self.meta: Any = None  # what the last step gave the worker
        self._steps = 0
        self._requests: dict[str, Request] = {}
        extra: dict[str, Any] = {"cpu_bytes_to_use": slots * self.chunk_nbytes}
        extra |= {"blocks_per_chunk": chunk_tokens // BLOCK, "offload_prompt_only": False}
        self.config: dict[str, Any] = {
            "chunk_tokens": chunk_tokens,
            "load": "always",  # nothing is computed here, so that nothing is worth a read
            **more,
            "tiers": [
                {"name": "dram", "kind": "dram", "capacity": slots * self.chunk_nbytes},
                *tiers,
            ],
        }
        name = {"vllm": "OffloadingConnector", "kvtier": "KVTierConnector"}.get(connector)
        plugin.register()
        transfer = name and KVTransferConfig(
            kv_connector=name,
            kv_role="kv_both",
            kv_connector_extra_config={"kvtier": self.config} if self._ours else extra,
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
            self.vllm_config = EngineArgs(
                model=folder,
                skip_tokenizer_init=True,
                block_size=BLOCK,
                max_model_len=MAX_LEN,
                max_num_seqs=max_seqs,
                max_num_batched_tokens=batched_tokens,
                enable_prefix_caching=True,
                kv_transfer_config=transfer or None,
            ).create_engine_config()
        self.vllm_config.cache_config.num_gpu_blocks = blocks
        init_none_hash(sha256)
        with set_current_vllm_config(self.vllm_config):
            self.scheduler = Scheduler(
                self.vllm_config,
                _cache_config(blocks, window, eagle=eagle),
                StructuredOutputManager(self.vllm_config),
                block_size=BLOCK,
                log_stats=True,
            )
        if self._ours:
            self.hello = self._hello(slots, chunk_tokens, groups=2 if window else 1)
            self.step()  # in which the rank says it

    @property
    def connector(self) -> Any:
        """The connector, where there is one."""
        return self.scheduler.connector

    def add(
        self,
        name: str,
        tokens: int,
        *,
        prefix: str = "",
        shared: int = 0,
        max_tokens: int = MAX_LEN,
    ) -> Request:
        """Let a request come."""
        names = Names(name, prefix, shared)
        request = Request(
            name,
            [0] * tokens,
            SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            None,
            block_hasher=lambda request: names.hashes(
                len(request.block_hashes), request.num_tokens // BLOCK
            ),
        )
        self._requests[name] = request
        self.scheduler.add_request(request)
        return request

    def step(self) -> float:
        """Make one step, of which the worker reports what is due; return what EngineCore spent."""
        self._steps += 1
        started = self.clock()
        out = self.scheduler.schedule()
        scheduled = self.clock() - started
        self.meta = out.kv_connector_metadata
        names = list(out.num_scheduled_tokens)
        sampled = [
            [1] if self._requests[n].num_computed_tokens >= self._requests[n].num_tokens else []
            for n in names
        ]
        told = self._told(self.meta)
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={n: i for i, n in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=told,
        )
        started = self.clock()
        self.scheduler.update_from_output(out, result)
        return scheduled + self.clock() - started

    def run(self, steps: int) -> list[float]:
        """Make steps; return what each cost."""
        return [self.step() for _ in range(steps)]

    def settle(self) -> None:
        """Step until every request decodes, every list is taken, and what began by then is over."""
        for _ in range(1000):
            self.step()
            if not (self.scheduler.get_request_counts()[1] or self._listed):
                self.run(self.load_steps + 4)
                return
        raise RuntimeError("the engine does not come to rest")

    def abort(self, names: Sequence[str]) -> None:
        """End requests."""
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
        for name in names:
            self._requests.pop(name, None)

    def _told(self, meta: Any) -> KVConnectorOutput | None:
        """Take a step's jobs and operations; return what the worker reports in this step."""
        if meta is None:
            return None
        results = list(self._answers(meta.ops)) if self._ours else []
        jobs = [*meta.load_jobs, *meta.store_jobs]
        loading = {job.req_id for job in meta.load_jobs.values()}
        if jobs or results:
            steps = self.load_steps if loading or results else 1
            self._under_way.append(_Due(self._steps + steps, jobs, results, loading))
        over = _Due(0, [], [], set())
        while self._under_way and self._under_way[0].step <= self._steps:
            due = self._under_way.popleft()
            over.jobs.extend(due.jobs)
            over.results.extend(due.results)
            over.loading.update(due.loading)
        counted = dict.fromkeys(over.jobs, 1)
        told = OffloadingWorkerMetadata(completed_jobs=counted)
        if self._ours:
            told = KVTierWorkerMetadata(
                completed_jobs=counted,
                results=over.results,
                scans=[self._listed.popleft()] if self._listed else [],
                timed=meta.timed,
                looked=[Looked(0, meta.look, b"the same")] if meta.look else [],
                hellos=[self.hello] if meta.greet else [],
            )
        return KVConnectorOutput(finished_recving=over.loading, kv_connector_worker_meta=told)

    def _answers(self, ops: Sequence[Any]) -> Iterator[OpResult]:
        """Do what the tiers are asked, at once and well; what they hold is listed a batch in each step."""
        for op in ops:
            if op.kind is OpKind.OPEN:
                found = self.found if op.tier == 1 else ()
                for i in range(0, max(1, len(found)), SCAN):
                    keys = list(found[i : i + SCAN])
                    nbytes = [self.chunk_nbytes] * len(keys)
                    times = [0.1 * (i + j) for j in range(len(keys))]
                    last = i + SCAN >= len(found)
                    self._listed.append(ScanBatch(0, op.tier, op.op, keys, nbytes, times, last))
            if op.kind is not OpKind.HASTEN:
                yield OpResult(0, op.op, OpStatus.OK, nbytes=self.chunk_nbytes, seconds=1e-3)

    def _hello(self, slots: int, chunk_tokens: int, groups: int) -> Hello:
        config = load(self.vllm_config.kv_transfer_config.kv_connector_extra_config["kvtier"])
        page = 2 * KV_HEADS * HEAD * 2 * BLOCK
        return Hello(
            rank=0,
            local_ranks=1,
            slots=slots,
            group_nbytes=dict.fromkeys(range(groups), self.chunk_nbytes),
            pages=dict.fromkeys(range(groups), (page,) * LAYERS),
            arranged=dict.fromkeys(range(groups), ("backend",)),
            device="null",
            config_digest=digest(config),
            blocks_per_chunk=chunk_tokens // BLOCK,
            weights=Weights("content:0", "sample:0"),
        )


def _cache_config(blocks: int, window: int, *, eagle: bool) -> KVCacheConfig:
    """Make the groups that a model has: they lie over each other in the same memory."""
    shape = {"num_kv_heads": KV_HEADS, "head_size": HEAD, "dtype": torch.bfloat16}
    specs: list[Any] = [FullAttentionSpec(block_size=BLOCK, **shape)]
    if window:
        specs.append(SlidingWindowSpec(block_size=BLOCK, sliding_window=window, **shape))
    page = specs[0].page_size_bytes
    tensors, groups = [], []
    for i, spec in enumerate(specs):
        names = [f"model.layers.{i * LAYERS + j}.self_attn.attn" for j in range(LAYERS)]
        size = blocks * page * LAYERS
        tensors.append(KVCacheTensor(size, names, layer_stride=blocks * page, block_stride=page))
        groups.append(KVCacheGroupSpec(names, spec, is_eagle_group=eagle and i == 0))
    return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=tensors, kv_cache_groups=groups)
