"""A brain over real I/O processes that die while they list what a directory holds: it knows all of it, once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kvtier.brain import TieredCache
from kvtier.brain.plans import TierSpec
from kvtier.io_process.client import IoClient
from kvtier.io_process.record import namespace_of
from kvtier.io_process.wire import IoSetup
from kvtier.memory.arena import Arena
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.types import PAGE, GroupSpec, OpResult, ScanBatch, WriteMode
from tests.io_process.rig import MANIFEST, SLOT_NBYTES, file_tier, key_of
from tests.patience import until

RECORDS = 20_000
NBYTES = 2 * PAGE


class Node:
    """One brain and an I/O process per rank, stepped by hand."""

    def __init__(self, path: Path, arena: Arena, ranks: int) -> None:
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
                    capacity=2 * RECORDS * NBYTES,
                    write=WriteMode.IDLE,
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
def node(path: Path, ranks: int) -> Iterator[Node]:
    with ExitStack() as stack:
        arena = Arena(4, SLOT_NBYTES)
        stack.callback(arena.close)
        made = Node(path, arena, ranks)
        for client in made.clients:
            stack.callback(client.close)
        for client in made.clients:
            client.wait_ready()
        yield made


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind, names and sizes only: nothing here is read."""
    path = tmp_path_factory.mktemp("scan") / "kv"
    for rank in range(2):
        root = path / namespace_of(MANIFEST) / f"r{rank}"
        shards: set[str] = set()
        for i in range(RECORDS):
            name = key_of(i).hex()
            if name[:2] not in shards:
                (root / name[:2]).mkdir(parents=True)
                shards.add(name[:2])
            fd = os.open(root / name[:2] / f"{name}.kvt", os.O_CREAT | os.O_WRONLY, 0o600)
            os.ftruncate(fd, NBYTES)
            os.close(fd)
    return path


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("moments", ["start", "middle", "start middle"])
def test_a_process_that_dies_before_its_list_is_whole_begins_anew(
    directory: Path, ranks: int, moments: str
) -> None:
    with node(directory, ranks) as made:
        made.brain.open(4, MANIFEST)
        for moment in moments.split():
            if moment == "start":
                made.signal(0, signal.SIGSTOP)
                made.step()  # OPEN is on its way
            else:
                seen = len(made.batches)
                made.until(lambda: made.listed(0, seen), "the list begins")  # noqa: B023
                assert not any(batch.done for batch in made.batches if batch.rank == 0)
            made.kill(0)
            made.until(lambda: made.clients[0].alive, "the next process is there")
            made.ahead_s += 2.0  # the brain, too, opens again, while that one lists
        made.until(made.settled, "the list is taken in")
        made.brain.check()
        tier = made.brain.stats().tiers[1]
        assert (tier.chunks, tier.used) == (RECORDS, RECORDS * NBYTES)
        assert sum(1 for _ in directory.rglob("*.kvt")) == 2 * RECORDS
