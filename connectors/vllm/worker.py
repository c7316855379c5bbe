"""The worker side: this rank's arena, its copies, and its end of the I/O process."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvtier.config import Config, dram_nbytes, load, of_rank, to_builtins
from kvtier.connectors.vllm import placing
from kvtier.connectors.vllm.copy_job import CopyJob, CopyPart
from kvtier.connectors.vllm.device import group_tensors, transfer_engine
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.landing import Landings
from kvtier.connectors.vllm.load_trace import CopyTrace
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.pages import Pages, element_name
from kvtier.connectors.vllm.ranks import Sharers, engine_of, owner_of
from kvtier.io_process.client import IoSetup
from kvtier.io_process.pair import IoPair
from kvtier.io_process.weights import Unread
from kvtier.layout import ChunkLayout
from kvtier.transfer.engine import ChunkCopy, Moved, chunk_nbytes
from kvtier.types import NO_SLOT, PAGE, TIER0, OpResult, Placed, ScanBatch, TierOp
from kvtier.units import format_nbytes

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import TransferJob

logger = logging.getLogger(__name__)

_REST_S = 2e-3  # so much later hears an idle engine of a new request


class KVTierWorker(OffloadingWorker):
    """Carries out vLLM's load and store jobs between device blocks and slots.

    Called from the worker's main thread only. A job never ends badly in vLLM's eyes, because that kills the
    engine: what failed is in `take_failed` and `take_invalid_blocks`.
    """

    def __init__(
        self,
        config: OffloadingConfig,
        caches: CanonicalKVCaches,
        layout: Mapping[int, Pages | str],
        sharers: Sharers,
        guard: Guard,
        unread: Unread | None = None,
    ) -> None:
        """Take vLLM's tensors; all `sharers` of this node do the same at the same time, and one reads `unread`."""
        configured = load(config.extra_config.get("kvtier"))
        # As vLLM has found out; what it makes of that (one copy in DRAM, of rank 0) is not for us.
        self.copies = bool(getattr(config, "replicated_layout", False))
        mine = of_rank(configured, sharers.ranks, copies=self.copies)
        self.sharers = sharers
        self.guard = guard
        self._unread = unread
        self.blocks_per_chunk = config.cache.blocks_per_chunk
        self._groups = [group.group_id for group in config.groups]
        pages = {group: group_tensors(caches, i) for i, group in enumerate(self._groups)}
        self.pages = {g: tuple(t.shape[1] for t in tensors) for g, tensors in pages.items()}
        self.group_nbytes = {g: chunk_nbytes(t, self.blocks_per_chunk) for g, t in pages.items()}
        slot_nbytes = -(-max(self.group_nbytes.values()) // PAGE) * PAGE
        self._rank = config.parallel.rank
        device = caches.tensors[0].tensor.device
        self.node = placing.own_node(device)
        dram = mine.tiers[0]
        nodes = placing.nodes_for(dram.numa, self.node)
        wanted = dram_nbytes(configured, sharers.ranks, sharers.engines)
        owner = owner_of(config.engine_id)
        free = placing.share_of_free(sharers.processes, owner)
        self.arena = placing.make_arena(wanted, slot_nbytes, nodes, owner, free)
        if self.arena.nbytes + slot_nbytes <= wanted and self._rank % sharers.ranks == 0:
            # once on each node
            logger.warning(
                "kvtier: tiers[0].capacity: %s for each of %d ranks, and %s of memory are free for each: the tier is "
                "clamped to %s of each; lower the capacity, or give the engine more memory",
                format_nbytes(wanted),
                sharers.processes,
                format_nbytes(free),
                format_nbytes(self.arena.nbytes),
            )
        # What nobody asked for by name is not taken before it is needed; a device pins all of it.
        placing.settle(
            self.arena,
            nodes,
            sharers.processes,
            fill=dram.capacity is not None or device.type != "cpu",
        )
        self._engine = transfer_engine(self.arena, pages, self.blocks_per_chunk)
        layouts = {g: self._layout(layout.get(g, "the pages were not looked at"), g) for g in pages}
        spare = free if self.arena.huge else free - self.arena.nbytes
        self.io = self._start_io(mine, config, layouts, spare)
        self._jobs: dict[int, CopyJob] = {}
        self._failed: dict[int, set[int]] = {}
        self._invalid_blocks: set[int] = set()
        self._failed_loads: set[int] = set()
        self._spoiled: set[int] = set()
        self._collected: list[tuple[CopyJob, Sequence[ChunkCopy], Sequence[int]]] = []
        """Stores that are not given to the engine yet: with their copies, and the positions of these in the job."""
        self._early: set[int] = set()  # loads that are submitted, and will be by vLLM
        self._landings = Landings(
            self.io.poll if self.io else list, self._engine.onload, overlap=mine.overlap
        )
        self.idle = False  # nothing is computed in this step
        self.trace = CopyTrace()

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        assert isinstance(dst_spec, SlotSpec)
        if not self.guard.run(partial(self._store, job_id, src_spec, dst_spec), False):
            self.guard.always(partial(self._fail, job_id, dst_spec, ()), None)
        return True

    def submit_load(
        self,
        job_id: int,
        src_spec: LoadStoreSpec,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        assert isinstance(src_spec, SlotSpec)
        if job_id in self._early:
            self._early.discard(job_id)
            return True
        if not self.guard.run(partial(self._load, job_id, src_spec, dst_spec), False):
            blocks = map(int, dst_spec.block_ids)
            self.guard.always(partial(self._fail, job_id, src_spec, blocks), None)
        return True

    def get_finished(self) -> list[TransferResult]:
        """Collect the jobs that are over. One that cannot say so is waited for, and what it says then counts."""
        self._submit_collected()
        self._go_on()
        if self.idle:
            self.guard.run(self._rest, None)
        jobs = [each for each in self._jobs.items() if each[0] not in self._early]
        ended = [job_id for job_id, job in jobs if self.guard.always(job.done, True)]
        return [self._ended(job_id) for job_id in ended]

    def wait(self, job_ids: set[int]) -> None:
        self._submit_collected()
        for job_id in self._jobs.keys() & job_ids:
            self.guard.always(self._jobs[job_id].wait, None)

    def launching(self, loads: "Mapping[int, TransferJob]") -> None:
        """Be told that a forward pass comes next. vLLM submits `loads` behind its launch, but into blocks that it neither
        reads nor writes: their requests wait. Stores of earlier passes are submitted by now, with what is flushed.
        Where the pass is no launch, but computed on this thread, loads do not wait for its end.
        """
        self.trace.announced()
        self._engine.launching()
        self._go_on()
        if not self._engine.beside:
            return
        for job_id, job in loads.items():
            assert isinstance(job.dst_spec, GPULoadStoreSpec)
            self.submit_load(job_id, job.src_spec, job.dst_spec)
            self._early.add(job_id)

    def launched(self) -> None:
        """Be told that nothing more is submitted of this pass."""
        self._submit_collected()
        self._engine.launched()

    def fail_loads(self) -> None:
        """Fail every load in flight: the cache that it reads from was reset."""
        for job_id, job in self._jobs.items():
            if job.blocks:
                self._failed_loads.add(job_id)
                self._invalid_blocks.update(job.blocks)
        for job in self._jobs.values():
            if job.blocks:
                job.stop()

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
        return self._landings.take()

    def placed(self) -> list[Placed]:
        """Say on which NUMA nodes this rank's memory is: the arena's as looked at now, a lower tier's as last told."""
        arena = [Placed(self._rank, TIER0, node, n) for node, n in self.arena.located()]
        return arena + (self.io.placed if self.io is not None else [])

    def io_seconds(self) -> dict[int, float]:
        """Say how much processor time this rank's I/O process has had."""
        seconds = self.io.processor_seconds() if self.io is not None else None
        return {} if seconds is None else {self._rank: seconds}

    def shutdown(self) -> None:
        closing = [self._engine.close, self.arena.close]
        if self.io is not None:
            closing.insert(0, self.io.close)
        for close in closing:
            self.guard.always(close, None)

    def _go_on(self) -> None:
        """Let loads go on, where any wait for reads."""
        if self._landings:
            self.guard.run(self._landings.hear, None)

    def _start_io(
        self,
        mine: Config,
        vllm: OffloadingConfig,
        layouts: dict[int, ChunkLayout | str],
        spare_nbytes: int,
    ) -> IoPair | None:
        """Start the I/O processes of this rank's tiers, `mine`, where there are any below the arena."""
        if len(mine.tiers) == 1:
            return None
        pair = IoPair(
            IoSetup(
                rank=self._rank,
                local_ranks=self.sharers.ranks,
                copies=self.copies,
                engine=engine_of(vllm.engine_id, vllm.parallel),
                engines=self.sharers.engines,
                arena_nbytes=self.arena.nbytes,
                slot_nbytes=self.arena.slot_nbytes,
                group_nbytes=self.group_nbytes,
                layouts=layouts,
                kv_dtype=element_name(vllm.model.dtype),
                tiers=[to_builtins(tier) for tier in mine.tiers[1:]],
                threads=mine.io.threads,
                idle_write_bytes_per_s=mine.io.idle_write,
                queue=mine.io.queue,
                numa_node=self.node,
                spare_nbytes=spare_nbytes,
                weights=self._unread,
            ),
            self.arena.fd,
        )
        try:
            pair.wait_ready()
        except BaseException:
            pair.close()
            raise
        return pair

    def _layout(self, pages: Pages | str, group: int) -> ChunkLayout | str:
        if isinstance(pages, str):
            return pages
        return pages.chunk(len(self.pages[group]), self.blocks_per_chunk, self.group_nbytes[group])

    def _store(self, job_id: int, device: GPULoadStoreSpec, slots: SlotSpec) -> bool:
        copies, torn = self._copies(slots, device)
        whole = [i for i in range(len(copies)) if i not in torn]
        job = self._jobs[job_id] = CopyJob(len(copies), failed=torn)
        if whole:
            self._collected.append((job, [copies[i] for i in whole], whole))
        return True

    def _submit_collected(self) -> None:
        """Give the engine the stores of a step, all at once; until then none of them is waited for or collected."""
        if self._collected and not self.guard.run(self._offload, False):
            for job, _, _ in self._collected:
                if not job.parts:
                    job.fail()
        self._collected = []

    def _offload(self) -> bool:
        transfers = self._engine.offload_each([copies for _, copies, _ in self._collected])
        for (job, _, chunks), transfer in zip(self._collected, transfers, strict=True):
            job.parts.append(CopyPart(transfer, chunks))
        return True

    def _load(self, job_id: int, slots: SlotSpec, device: GPULoadStoreSpec) -> bool:
        copies, _ = self._copies(slots, device)
        coming = slots.reads
        gone = {i for i, copy in enumerate(copies) if copy.slot == NO_SLOT}
        there = [i for i in range(len(copies)) if i not in gone and i not in coming]
        for i in gone:
            self._invalid_blocks.update(b for b in copies[i].blocks if b is not None)
        job = self._jobs[job_id] = CopyJob(len(copies), tuple(map(int, device.block_ids)), gone)
        self.trace.submitted(job_id)
        if there:
            transfer, now = self._engine.onload([copies[i] for i in there]), time.monotonic()
            job.parts.append(CopyPart(transfer, there, now))
        if coming:
            job.until = time.monotonic() + slots.patience_s
            self._landings.begin(job, coming, copies)
        return True

    def _rest(self) -> None:
        """Sleep for a moment where else this thread and the engine would spin: until the oldest load is over."""
        for job in self._jobs.values():
            if job.blocks:
                job.rest(_REST_S)
                return

    def _fail(self, job_id: int, slots: SlotSpec, blocks: Iterable[int]) -> None:
        """Book a job that was not submitted as one that failed as a whole; what was started of it ends first."""
        whole = CopyJob(sum(map(len, slots.slots)), tuple(blocks))
        job = self._jobs.setdefault(job_id, whole)
        job.stop()
        job.fail()
        self._invalid_blocks.update(job.blocks)
        if job.blocks:
            self._failed_loads.add(job_id)

    def _ended(self, job_id: int) -> TransferResult:
        job = self._jobs.pop(job_id)
        self._landings.forget(job)
        moved = self.guard.always(partial(self._end, job_id, job), None)
        if moved is None:
            job.fail()
            self._invalid_blocks.update(job.blocks)
        if job.failed:
            self._failed[job_id] = job.failed
            if job.blocks:
                self._failed_loads.add(job_id)
        self.trace.reported(job_id, moved, job.copied)
        nbytes, seconds = moved[:2] if moved else (None, None)
        return TransferResult(job_id, True, nbytes, seconds)

    def _end(self, job_id: int, job: CopyJob) -> Moved:
        before = len(job.failed)
        self._invalid_blocks.update(job.lost)
        moved = job.result()
        if len(job.failed) > before:
            self._invalid_blocks.update(job.blocks)
        if job_id in self._spoiled:
            self._spoiled.discard(job_id)
            job.fail()
        return moved

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
