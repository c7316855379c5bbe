"""vLLM's real scheduler with a hybrid model's KV-cache groups, kvtier behind it, and a worker that copies names of chunks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from vllm.config import KVTransferConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MambaSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from kvtier.config import load
from kvtier.connectors.vllm import plugin
from kvtier.connectors.vllm.looks import Looked
from kvtier.connectors.vllm.messages import KVTierWorkerMetadata, SlotSpec
from kvtier.types import OpKind, OpResult, OpStatus, ScanBatch, TierOp
from tests.connectors import halves

BLOCK, UNIT = 64, 16  # tokens of a block of every group, and of what a hit may end behind
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}


class Hybrid:
    """One engine without a model. Slots and records hold the names of chunks: who loads one finds which it is."""

    def __init__(self, folder: Path, slots: int = 64) -> None:
        (folder / "config.json").write_text(json.dumps(_MODEL))
        tiers = [{"name": "dram", "kind": "dram", "capacity": "64MiB"}]
        tiers += [
            {"name": "nvme", "kind": "file", "path": str(folder), "capacity": "1GiB"}
            | {"write": "through"}
        ]
        config: dict[str, Any] = {"load": "always", "tiers": tiers}
        plugin.register()
        self.vllm_config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            max_model_len=4096,
            max_num_seqs=4,
            max_num_batched_tokens=4096,
            enable_prefix_caching=True,
            prefix_match_unit=UNIT,
            kv_transfer_config=KVTransferConfig(
                "KVTierConnector",
                kv_role="kv_both",
                kv_connector_extra_config={"kvtier": config},
            ),
        ).create_engine_config()
        caches = self.vllm_config.cache_config
        caches.num_gpu_blocks, caches.mamba_cache_mode = 64, "align"
        init_none_hash(sha256)
        with set_current_vllm_config(self.vllm_config):
            self.scheduler = Scheduler(
                self.vllm_config,
                _cache_config(64),
                StructuredOutputManager(self.vllm_config),
                block_size=BLOCK,
                hash_block_size=UNIT,
                log_stats=True,
            )
        self.slots: dict[int, bytes] = {}
        self.records: dict[bytes, bytes] = {}
        self.requests: dict[str, Request] = {}
        self.loaded: list[tuple[str, list[bytes], list[int]]] = []  # request, chunks, blocks
        self._jobs: dict[int, Any] = {}
        self._found: dict[str, int] = {}
        groups = (0, 1)
        self._hello = replace(
            halves.hello(slots, config=load(config)),
            blocks_per_chunk=1,
            group_nbytes=dict.fromkeys(groups, 8192),
            pages=dict.fromkeys(groups, (8192,)),
            arranged=dict.fromkeys(groups, ("backend",)),
        )
        self.step()  # in which the rank says hello
        self.step()

    @property
    def connector(self) -> Any:
        """kvtier."""
        return self.scheduler.connector

    def ask(self, name: str, prompt: list[int], tokens: int = 3, **params: object) -> int:
        """Let a request run to its end, and what it began be done; return how many tokens it did not compute."""
        request = Request(
            name,
            prompt,
            SamplingParams(
                max_tokens=tokens,
                ignore_eos=True,
                extra_args={"kv_transfer_params": params} if params else None,
            ),
            None,
            block_hasher=get_request_block_hasher(UNIT, sha256),
        )
        self.requests[name] = request
        self.scheduler.add_request(request)
        for _ in range(100):
            self.step()
            if request.is_finished() and not self.scheduler.has_requests():
                return self._found[name]
        raise RuntimeError("it does not end")

    def step(self) -> None:
        """Make one step; the worker has done a step's jobs in the next one."""
        out = self.scheduler.schedule()
        names = list(out.num_scheduled_tokens)
        self._found.update((new.req_id, new.num_computed_tokens) for new in out.scheduled_new_reqs)
        sampled = []
        for name in names:
            request = self.requests[name]
            behind = request.num_computed_tokens + 0 < request.num_tokens
            sampled.append([] if behind else [1 + len(request.output_token_ids)])
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=self._work(out.kv_connector_metadata),
        )
        self.scheduler.update_from_output(out, result)

    def _work(self, meta: Any) -> KVConnectorOutput:
        """Take a step's jobs and operations; report those of the step before."""
        done, self._jobs = self._jobs, {}
        loads = {job.req_id for job in done.values() if job.src_spec.__class__ is SlotSpec}
        self._jobs = {**meta.load_jobs, **meta.store_jobs}
        for job_id in meta.load_jobs:
            self._load(self._jobs[job_id])
        for job_id in meta.store_jobs:
            self._store(job_id)
        told = KVTierWorkerMetadata(
            completed_jobs=dict.fromkeys(done, 1),
            results=[self._serve(op) for op in meta.ops if op.kind is not OpKind.HASTEN],
            scans=[
                ScanBatch(0, op.tier, op.op, [], [], [], True)
                for op in meta.ops
                if op.kind is OpKind.OPEN
            ],
            timed=meta.timed,
            looked=[Looked(0, meta.look, b"the same")] if meta.look else [],
            hellos=[self._hello] if meta.greet else [],
        )
        return KVConnectorOutput(finished_recving=loads, kv_connector_worker_meta=told)

    def _store(self, job_id: int) -> None:
        """Put the name of each chunk into its slot."""
        job = self._jobs[job_id]
        keys = self.connector.scheduling._jobs.live[job_id].keys
        slots = [slot for group in job.dst_spec.slots for slot in group]
        assert len(keys) == len(slots) == len(job.src_spec.block_ids)
        order = sorted(keys, key=lambda key: key[-4:])  # by group, as the slots are
        self.slots.update(zip(slots, order, strict=True))

    def _load(self, job: Any) -> None:
        """Note what stands in the slots that are copied into a request's blocks."""
        slots = [slot for group in job.src_spec.slots for slot in group]
        assert len(slots) == len(job.dst_spec.block_ids)
        self.loaded.append(
            (
                job.req_id,
                [self.slots[slot] for slot in slots],
                list(map(int, job.dst_spec.block_ids)),
            )
        )

    def _serve(self, op: TierOp) -> OpResult:
        if op.kind is OpKind.WRITE:
            self.records[op.key] = self.slots[op.slot]
        if op.kind is OpKind.READ:
            self.slots[op.slot] = self.records[op.key]
        return OpResult(0, op.op, OpStatus.OK, nbytes=8192, seconds=1e-3)


def _cache_config(blocks: int) -> KVCacheConfig:
    """One group of attention and one of states, whose blocks have the same size."""
    attention = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32
    )
    states = MambaSpec(
        block_size=BLOCK,
        shapes=((64, 16),),
        dtypes=(torch.float32,),
        page_size_padded=attention.page_size_bytes,
        mamba_cache_mode="align",
    )
    page = attention.page_size_bytes
    tensor = KVCacheTensor(blocks * page, ["a", "s"], layer_stride=blocks * page, block_stride=page)
    return KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[KVCacheGroupSpec(["a"], attention), KVCacheGroupSpec(["s"], states)],
    )
