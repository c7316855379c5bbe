"""A brain, a real I/O process and a real file system that is far smaller than the tier's capacity."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.brain import TieredCache, TierSpec
from kvtier.brain.breaker import BreakerState
from kvtier.brain.stats import TierStats
from kvtier.tier import Bytes
from kvtier.types import NO_SLOT, BlockKey, OpStatus, ScanBatch, WriteMode
from tests.brain.fake_engine import eviction
from tests.brain.fake_ranks import CHUNK, FULL, RECORD, chain
from tests.io_process.rig import Rig, file_tier, pattern, rig
from tests.mounts import SmallDisk, small_disk
from tests.patience import until

SLOTS = 32
PLACES = 70  # records that the disk has room for
PROMPTS = 40  # of four chunks each


class Engine:
    """One rank: what the brain orders goes to the I/O process, and every answer back. Its clock may be moved."""

    def __init__(self, io: Rig) -> None:
        self.late_s = 0.0
        self.io = io
        self.brain = TieredCache(
            groups=[FULL],
            ranks=1,
            tier0=eviction("lru"),
            lower=[
                TierSpec(
                    name="nvme",
                    capacity=1 << 30,
                    write=WriteMode.THROUGH,
                    deadline_s=60.0,
                    persistent=True,
                    eviction=eviction("lru"),
                    max_writes=4,
                )
            ],
            low_watermark=0.0,
            clock=lambda: time.monotonic() + self.late_s,
        )
        self.brain.open(SLOTS, '{"model": "test"}')
        self.settle()

    @property
    def tier(self) -> TierStats:
        return self.brain.stats().tiers[1]

    def settle(self) -> None:
        """Step until nothing is under way; what waits for a full disk waits on."""
        until(lambda: not self.step(), "all is answered")
        self.brain.check()

    def step(self) -> bool:
        self.io.submit(*self.brain.drain())
        for item in self.io.client.poll():
            if isinstance(item, ScanBatch):
                self.brain.scanned(item)
            else:
                self.brain.complete([item])
        self.brain.events()
        return self.io.client.pending > 0 or self.brain.awake()

    def store(self, name: str) -> None:
        keys = chain(name, 4)
        self.brain.arrive(name, [keys])
        plan = self.brain.plan_store(name, keys)
        for key, slot in zip(plan.keys, plan.slots, strict=True):
            self.io.arena.slot(slot)[:CHUNK] = content(key)
        self.brain.finish(plan.plan_id)
        self.brain.depart(name)
        self.settle()

    def hit(self, name: str) -> int:
        """Read a prompt back as a request does; every byte is right. Return how many chunks of it were found."""
        keys = chain(name, 4)
        self.brain.arrive(name, [keys])
        found = [key for key in keys if self.brain.lookup(name, key)]
        if found and self.brain.plan_read(name, found):
            until(lambda: self.step() or self.brain.ready(name), "the reads end")
            self.settle()
            found = [key for key in keys if self.brain.lookup(name, key)]
            assert self.brain.plan_read(name, found) is None
        plan = self.brain.plan_load(name, found)
        assert NO_SLOT not in plan.slots
        for key, slot in zip(found, plan.slots, strict=True):
            assert (self.io.arena.slot(slot)[:CHUNK] == content(key)).all()
        self.brain.finish(plan.plan_id)
        self.brain.depart(name)
        return len(found)


def content(key: BlockKey) -> Bytes:
    return pattern(int.from_bytes(key[:8], "little"), CHUNK)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", f"size={PLACES * RECORD + (64 << 10)}") as made:
        yield made


@pytest.fixture
def engine(disk: SmallDisk) -> Iterator[Engine]:
    with rig(
        [file_tier(disk.path)],
        slots=SLOTS,
        slot_nbytes=CHUNK,
        group_nbytes={0: CHUNK},
        open_now=False,
    ) as io:
        yield Engine(io)


def test_hits_go_on_from_a_disk_that_is_full(engine: Engine) -> None:
    for i in range(PROMPTS):
        engine.store(f"p{i}")
        engine.late_s += 20
    assert engine.tier.failures.keys() == {OpStatus.NO_ROOM}
    assert engine.tier.failures[OpStatus.NO_ROOM] < 20
    assert (engine.tier.trips, engine.tier.breaker) == (0, BreakerState.CLOSED)
    assert PLACES // 2 < engine.tier.chunks <= PLACES + 5
    hits = [engine.hit(f"p{i}") for i in range(PROMPTS)]
    assert sum(hits) > PLACES // 2, hits
    assert hits[-8:] == [4] * 8, "the latest prompts are there"
    assert hits[:10] == [0] * 10, "the oldest made room"


def test_it_grows_back_with_the_room(engine: Engine, disk: SmallDisk) -> None:
    disk.fill(24 * RECORD)
    for i in range(12):
        engine.store(f"p{i}")
        engine.late_s += 20
    assert engine.tier.capacity < 26 * RECORD, (
        "what is being written may be counted twice for a moment"
    )
    disk.free()
    for i in range(12, 24):
        engine.store(f"p{i}")
        engine.late_s += 20
    assert engine.tier.capacity > PLACES // 2 * RECORD
    assert sum(engine.hit(f"p{i}") for i in range(24)) > PLACES // 2
