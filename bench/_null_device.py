"""A worker over a device that does nothing at once: what is left is what the worker's main thread spends."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.landing import Landings
from kvtier.connectors.vllm.load_trace import CopyTrace
from kvtier.connectors.vllm.messages import SlotSpec
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.memory.arena import Arena
from kvtier.transfer.hardware import Hardware
from kvtier.transfer.page_map import Addresses
from kvtier.transfer.paths import Copier, Direction
from kvtier.transfer.pinning import Registrar
from kvtier.transfer.stream_engine import StreamTransferEngine
from kvtier.transfer.streams import Mark, Streams

LAYERS = 32


class NullMark(Mark):
    """Passed."""

    def passed(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class NullStreams(Streams):
    """Run everything at once."""

    def open(self, *, urgent: bool = False) -> int:
        return 1

    def mark(self, stream: int) -> Mark:
        return NullMark()

    def after(self, stream: int, mark: Mark) -> None:
        pass

    def run(self, stream: int, work: Callable[[], None]) -> None:
        work()


class NullCopier(Copier):
    """Counts calls."""

    def __init__(self) -> None:
        self.calls = 0

    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses, direction: Direction) -> None:
        self.calls += 1

    def kernel(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        self.calls += 1


class NullRegistrar(Registrar):
    """Pins nothing."""

    def register(self, address: int, nbytes: int) -> None:
        pass

    def unregister(self, address: int) -> None:
        pass


class NullRank:
    """A rank's worker whose pages nobody ever touches: address space is all that they take."""

    def __init__(self, *, blocks: int, page_nbytes: int, blocks_per_chunk: int, slots: int) -> None:
        self.copier = NullCopier()
        self.blocks_per_chunk = blocks_per_chunk
        self.arena = Arena(slots, LAYERS * blocks_per_chunk * page_nbytes)
        pages = [torch.empty((blocks, page_nbytes), dtype=torch.int8) for _ in range(LAYERS)]
        device = Hardware(
            "null",
            torch.device("cpu"),
            NullStreams(),
            self.copier,
            True,
            NullRegistrar(),
            lambda: None,
        )
        logging.disable(logging.WARNING)
        self.engine = StreamTransferEngine(self.arena, {0: pages}, blocks_per_chunk, device)
        logging.disable(logging.NOTSET)
        worker: Any = KVTierWorker.__new__(KVTierWorker)
        worker.blocks_per_chunk, worker._groups, worker._engine = blocks_per_chunk, [0], self.engine
        worker._jobs, worker._failed, worker._spoiled = {}, {}, set()
        worker._collected = []
        worker._failed_loads, worker._invalid_blocks, worker.guard = set(), set(), Guard()
        worker._early, worker.idle, worker.trace = set(), False, CopyTrace()
        worker._landings = Landings(list, self.engine.onload)
        self.worker: KVTierWorker = worker

    def specs(self, slots: range, first_block: int) -> tuple[SlotSpec, GPULoadStoreSpec]:
        """Pair slots with blocks of which no two are neighbours."""
        n = len(slots) * self.blocks_per_chunk
        blocks = list(range(first_block, first_block + 2 * n, 2))
        return SlotSpec(1, (tuple(slots),)), GPULoadStoreSpec(blocks, [n], [0])

    def close(self) -> None:
        """Give everything back."""
        self.engine.close()
        self.arena.close()
