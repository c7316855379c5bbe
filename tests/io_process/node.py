"""One brain over the real I/O processes of its ranks, stepped by hand."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kvtier.brain import TieredCache
from kvtier.brain.plans import TierSpec
from kvtier.io_process.client import IoClient
from kvtier.io_process.wire import IoSetup
from kvtier.memory.arena import Arena
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.types import PAGE, BlockKey, GroupSpec, OpResult, ScanBatch, WriteMode
from tests.io_process.rig import MANIFEST, SLOT_NBYTES, file_tier, key_of
from tests.patience import until

NBYTES = 2 * PAGE  # of a record
SLOTS = 64


class Node:
    """The brain, a client per rank, and what came back."""

    def __init__(
        self, path: Path, arena: Arena, ranks: int, capacity: int, write: WriteMode
    ) -> None:
        self.ahead_s = 0.0  # of the brain's clock
        self.clients = [
            IoClient(
                IoSetup(
                    rank=rank,
                    local_ranks=ranks,
                    arena_nbytes=arena.nbytes,
                    slot_nbytes=SLOT_NBYTES,
                    group_nbytes={0: PAGE},
                    tiers=[file_tier(path)],
                    threads=2,
                ),
                arena.fd,
            )
            for rank in range(ranks)
        ]
        self.brain = TieredCache(
            groups=[GroupSpec(0, 16, None, PAGE)],
            ranks=ranks,
            tier0=LruPolicy,
            lower=[
                TierSpec(
                    name="nvme",
                    capacity=capacity,
                    write=write,
                    deadline_s=2.0,
                    persistent=True,
                    eviction=LruPolicy,
                )
            ],
            clock=lambda: time.monotonic() + self.ahead_s,
        )
        self.batches: list[ScanBatch] = []

    def step(self) -> None:
        ops = self.brain.drain()
        for client in self.clients:
            client.submit(ops)
            for answer in client.poll():
                if isinstance(answer, OpResult):
                    self.brain.complete([answer])
                else:
                    self.batches.append(answer)
                    self.brain.scanned(answer)
        time.sleep(0.001)

    def store(self, name: str, numbers: range) -> None:
        """Let a request come, store so many chunks and leave."""
        keys = [BlockKey(key_of(number)) for number in numbers]
        self.brain.arrive(name, [keys])
        plan = self.brain.plan_store(name, keys)
        self.brain.finish(plan.plan_id)
        self.brain.depart(name)

    def until(self, done: Callable[[], object], what: str) -> None:
        until(done, what, self.step)

    def signal(self, rank: int, number: signal.Signals) -> int:
        pid = self.clients[rank].pid
        assert pid
        os.kill(pid, number)
        return pid

    def kill(self, rank: int) -> None:
        pid = self.signal(rank, signal.SIGKILL)
        self.until(lambda: self.clients[rank].pid != pid, "its death is noticed")

    def listed(self, rank: int, since: int) -> bool:
        return any(batch.rank == rank for batch in self.batches[since:])

    def settled(self) -> bool:
        return self.brain.view.serving(1) and not self.brain.view.pending()


@contextmanager
def node(
    path: Path,
    ranks: int,
    capacity: int,
    write: WriteMode = WriteMode.IDLE,
    manifest: str = MANIFEST,
) -> Iterator[Node]:
    with ExitStack() as stack:
        arena = Arena(SLOTS, SLOT_NBYTES)
        stack.callback(arena.close)
        made = Node(path, arena, ranks, capacity, write)
        for client in made.clients:
            stack.callback(client.close)
        for client in made.clients:
            client.wait_ready()
        made.brain.open(SLOTS, manifest)
        yield made
