"""The worker side: this rank's arena, its copies, and its end of the I/O process."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvtier import topology
from kvtier.arena import PAGE, Arena
from kvtier.config import Config, TierConfig, default_dram_nbytes, load, to_builtins
from kvtier.connectors.vllm import placing
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.layout import Pages, element_name
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.io_process.client import IoClient, IoSetup
from kvtier.io_process.plugins import in_memory
from kvtier.layout import ChunkLayout
from kvtier.transfer.cpu import CpuTransferEngine
from kvtier.transfer.cuda import stream_engine
from kvtier.transfer.engine import ChunkCopy, Transfer, TransferEngine, chunk_nbytes
from kvtier.types import NO_SLOT, TIER0, OpResult, Placed, ScanBatch, TierOp
from kvtier.units import format_nbytes

logger = logging.getLogger(__name__)


class _Job(NamedTuple):
    transfer: Transfer | None  # None: nothing to copy
    chunks: int
    blocks: tuple[int, ...]  # a load's destination; empty for a store
    failed: set[int]  # positions of chunks that did not make it


class KVTierWorker(OffloadingWorker):
    """Carries out vLLM's load and store jobs between device blocks and slots.

    Called from the worker's main thread only. A job never ends badly in vLLM's eyes, because that kills the
    engine: what failed is in `take_failed` and `take_invalid_blocks`.
    """

    def __init__(
        self,
        config: OffloadingConfig,
        caches: CanonicalKVCaches,
        layout: Mapping[int, Pages | str] = MappingProxyType({}),
        engines: int = 1,
    ) -> None:
        """Take vLLM's tensors; `engines` of this node do the same at the same time."""
        self._config = load(config.extra_config.get("kvtier"))
        self.blocks_per_chunk = config.cache.blocks_per_chunk
        self._groups = [group.group_id for group in config.groups]
        pages = {group: _group_tensors(caches, i) for i, group in enumerate(self._groups)}
        self.pages = {g: tuple(t.shape[1] for t in tensors) for g, tensors in pages.items()}
        self.group_nbytes = {g: chunk_nbytes(t, self.blocks_per_chunk) for g, t in pages.items()}
        slot_nbytes = -(-max(self.group_nbytes.values()) // PAGE) * PAGE
        ranks = local_ranks(config)
        self._rank = config.parallel.rank
        device = caches.tensors[0].tensor.device
        self.node = placing.own_node(device)
        dram = self._config.tiers[0]
        nodes = placing.nodes_for(dram.numa, self.node)
        share = dram_share(self._config, ranks, engines)
        free = topology.free_nbytes()
        owner = placing.owner_of(config.engine_id)
        self.arena = Arena(share // slot_nbytes, slot_nbytes, nodes, owner)
        # Explicit huge pages are nobody else's memory, and all there already.
        ordinary = 0 if self.arena.huge else self.arena.nbytes
        lower = memory_share(self._config, ranks)
        fits = placing.fits(ordinary, lower, ranks * engines, owner)
        if not fits and self._rank == 0:
            logger.warning(
                "kvtier: tiers in memory, %s for each of %d ranks, are more than is free here, %s: nothing is "
                "pinned or taken ahead, and the system may end processes when they fill; lower tiers[].capacity",
                format_nbytes(ordinary + lower),
                ranks * engines,
                format_nbytes(free),
            )
        # What nobody asked for by name is not taken before it is needed; a device pins all of it.
        fill = fits and (dram.capacity is not None or device.type != "cpu")
        placing.settle(self.arena, nodes, ranks * engines, fill=fill)
        self._engine = _transfer_engine(self.arena, pages, self.blocks_per_chunk, pin=fits)
        layouts = {g: self._layout(layout.get(g, "the pages were not looked at"), g) for g in pages}
        self.io = _start_io(
            self._config,
            config,
            self.arena,
            self.group_nbytes,
            layouts,
            self.node,
            free - ordinary,
        )
        self._jobs: dict[int, _Job] = {}
        self._failed: dict[int, set[int]] = {}
        self._invalid_blocks: set[int] = set()
        self._failed_loads: set[int] = set()
        self._spoiled: set[int] = set()
        self.guard = Guard()

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        assert isinstance(dst_spec, SlotSpec)
        if not self.guard.run(partial(self._store, job_id, src_spec, dst_spec), False):
            self._fail(job_id, dst_spec, ())
        return True

    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        assert isinstance(src_spec, SlotSpec)
        if not self.guard.run(partial(self._load, job_id, src_spec, dst_spec), False):
            self._fail(job_id, src_spec, map(int, dst_spec.block_ids))
        return True

    def get_finished(self) -> list[TransferResult]:
        ended = [id for id, job in self._jobs.items() if not job.transfer or job.transfer.done()]
        return [self._end(job_id) for job_id in ended]

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and job.transfer is not None:
                try:
                    job.transfer.result()
                except Exception:
                    logger.debug("job %d failed; it is reported when it is collected", job_id)

    def launching(self) -> None:
        """Be told that a forward pass comes next. vLLM submits loads behind its launch, but into blocks that it neither
        reads nor writes: their requests wait. Stores of earlier passes are submitted by now, with what is flushed.
        """
        self._engine.launching()

    def launched(self) -> None:
        """Be told that nothing more is submitted of this pass."""
        self._engine.launched()

    def fail_loads(self) -> None:
        """Fail every load in flight: the cache that it reads from was reset."""
        for job_id, job in self._jobs.items():
            if job.blocks:
                self._failed_loads.add(job_id)
                self._invalid_blocks.update(job.blocks)
                if job.transfer is not None:
                    job.transfer.stop()

    def spoil(self, job_ids: Iterable[int]) -> None:
        """Let stores fail as a whole: what they read may not be theirs any more. Some are not submitted yet."""
        self._spoiled.update(job_ids)

    def forget_spoiled(self) -> None:
        """Forget the spoiled jobs that are not here: they have ended, or are other ranks'."""
        self._spoiled &= self._jobs.keys()

    def take_failed(self) -> dict[int, set[int]]:
        """Take the chunk positions that failed, per ended job."""
        failed, self._failed = self._failed, {}
        return failed

    def take_failed_loads(self) -> set[int]:
        """Take the ended load jobs of which any block is invalid."""
        failed, self._failed_loads = self._failed_loads, set()
        return failed

    def take_invalid_blocks(self) -> set[int]:
        """Take the device blocks whose load failed."""
        blocks, self._invalid_blocks = self._invalid_blocks, set()
        return blocks

    def submit_ops(self, ops: Sequence[TierOp]) -> None:
        if self.io is not None:
            self.io.submit(ops)

    def poll(self) -> list[OpResult | ScanBatch]:
        return self.io.poll() if self.io is not None else []

    def placed(self) -> list[Placed]:
        """Say on which NUMA nodes this rank's memory is: the arena's as looked at now, a lower tier's as last told."""
        arena = [Placed(self._rank, TIER0, node, n) for node, n in self.arena.located()]
        return arena + (self.io.placed if self.io is not None else [])

    def shutdown(self) -> None:
        if self.io is not None:
            self.io.close()
        self._engine.close()
        self.arena.close()

    def _layout(self, pages: Pages | str, group: int) -> ChunkLayout | str:
        if isinstance(pages, str):
            return pages
        return pages.chunk(len(self.pages[group]), self.blocks_per_chunk, self.group_nbytes[group])

    def _store(self, job_id: int, device: GPULoadStoreSpec, slots: SlotSpec) -> bool:
        copies, torn = self._copies(slots, device)
        whole = [copy for i, copy in enumerate(copies) if i not in torn]
        transfer = self._engine.offload(whole) if whole else None
        self._jobs[job_id] = _Job(transfer, len(copies), (), torn)
        return True

    def _load(self, job_id: int, slots: SlotSpec, device: GPULoadStoreSpec) -> bool:
        copies, _ = self._copies(slots, device)
        gone = {i for i, copy in enumerate(copies) if copy.slot == NO_SLOT}
        for i in gone:
            self._invalid_blocks.update(b for b in copies[i].blocks if b is not None)
        there = [copy for i, copy in enumerate(copies) if i not in gone]
        transfer = self._engine.onload(there) if there else None
        self._jobs[job_id] = _Job(transfer, len(copies), tuple(map(int, device.block_ids)), gone)
        return True

    def _fail(self, job_id: int, slots: SlotSpec, blocks: Iterable[int]) -> None:
        """Book a job that was not submitted as one that failed as a whole."""
        chunks = sum(map(len, slots.slots))
        self._jobs[job_id] = _Job(None, chunks, tuple(blocks), set(range(chunks)))
        self._invalid_blocks.update(self._jobs[job_id].blocks)

    def _end(self, job_id: int) -> TransferResult:
        job = self._jobs.pop(job_id)
        nbytes, seconds = 0, 0.0
        try:
            if job.transfer is not None:
                nbytes, seconds = job.transfer.result()
        except Exception:
            logger.exception("a copy of %d chunks failed", job.chunks)
            job.failed.update(range(job.chunks))
            self._invalid_blocks.update(job.blocks)
        if job_id in self._spoiled:
            self._spoiled.discard(job_id)
            job.failed.update(range(job.chunks))
        if job.failed:
            self._failed[job_id] = job.failed
            if job.blocks:
                self._failed_loads.add(job_id)
        return TransferResult(job_id, True, nbytes, seconds)

    def _copies(
        self, slots: SlotSpec, device: GPULoadStoreSpec
    ) -> tuple[list[ChunkCopy], set[int]]:
        """Pair slots with device blocks; also say which chunks are not surely and wholly covered by blocks.

        vLLM gives the blocks of a group in one run that may begin inside a chunk and end inside one. In a store
        it leaves out blocks that a window has lost: where any are missing, nobody can say whose the others are.
        """
        copies: list[ChunkCopy] = []
        torn: set[int] = set()
        blocks = device.block_ids.tolist()
        start = 0
        for position, n in enumerate(device.group_sizes):
            skip = device.block_indices[position] % self.blocks_per_chunk if n else 0
            ragged = n and skip + n != len(slots.slots[position]) * self.blocks_per_chunk
            padded = [None] * skip + blocks[start : start + n]
            start += n
            for i, slot in enumerate(slots.slots[position]):
                piece = padded[i * self.blocks_per_chunk : (i + 1) * self.blocks_per_chunk]
                piece += [None] * (self.blocks_per_chunk - len(piece))
                if ragged or None in piece:
                    torn.add(len(copies))
                copies.append(ChunkCopy(slot, self._groups[position], tuple(piece)))
            if len(padded) > len(slots.slots[position]) * self.blocks_per_chunk:
                raise ValueError(f"group {position}: {n} blocks for {slots.slots[position]}")
        return copies, torn


def local_ranks(config: OffloadingConfig) -> int:
    """Ranks of this engine that share this node's memory and disks; one node is assumed unless torch says less."""
    return min(
        config.parallel.world_size,
        max(1, torch.accelerator.device_count() or config.parallel.world_size),
    )


def dram_share(config: Config, ranks: int, engines: int) -> int:
    """Bytes of tier 0 that one rank may take: of what was configured for its engine, or of the node's memory."""
    capacity = config.tiers[0].capacity
    return default_dram_nbytes(ranks * engines) if capacity is None else capacity // ranks


def memory_share(config: Config, ranks: int) -> int:
    """Bytes of memory that one rank's lower tiers may take."""
    return sum((tier.capacity or 0) // ranks for tier in config.tiers[1:] if in_memory(tier.kind))


def _group_tensors(caches: CanonicalKVCaches, position: int) -> list[torch.Tensor]:
    """Collect a group's distinct tensors, each cut to its unpadded page."""
    nbytes: dict[int, int] = {}
    for ref in caches.group_data_refs[position]:
        nbytes[ref.tensor_idx] = max(nbytes.get(ref.tensor_idx, 0), ref.page_size_bytes)
    return [caches.tensors[i].tensor[:, :n] for i, n in nbytes.items()]


def _transfer_engine(
    arena: Arena, pages: dict[int, list[torch.Tensor]], blocks_per_chunk: int, *, pin: bool
) -> TransferEngine:
    if next(iter(pages.values()))[0].device.type == "cpu":
        return CpuTransferEngine(arena, pages, blocks_per_chunk)
    return stream_engine(arena, pages, blocks_per_chunk, pin=pin)


def _start_io(
    config: Config,
    vllm: OffloadingConfig,
    arena: Arena,
    group_nbytes: dict[int, int],
    layouts: dict[int, ChunkLayout | str],
    node: int | None,
    spare_nbytes: int,
) -> IoClient | None:
    if len(config.tiers) == 1:
        return None
    parallel = vllm.parallel
    client = IoClient(
        IoSetup(
            rank=parallel.rank,
            world_size=parallel.world_size,
            engine=placing.engine_of(vllm.engine_id, parallel),
            arena_nbytes=arena.nbytes,
            slot_nbytes=arena.slot_nbytes,
            group_nbytes=group_nbytes,
            layouts=layouts,
            kv_dtype=element_name(vllm.model.dtype),
            tiers=[_tier_setup(tier, local_ranks(vllm)) for tier in config.tiers[1:]],
            threads=config.io.threads,
            idle_write_bytes_per_s=config.io.idle_write,
            queue=config.io.queue,
            numa_node=node,
            spare_nbytes=spare_nbytes,
        ),
        arena.fd,
    )
    try:
        client.wait_ready()
    except BaseException:
        client.close()
        raise
    return client


def _tier_setup(tier: TierConfig, ranks: int) -> dict[str, object]:
    """What an I/O process gets to know of a tier: its capacity is this rank's share."""
    assert tier.capacity is not None
    return to_builtins(msgspec.structs.replace(tier, capacity=tier.capacity // ranks))
