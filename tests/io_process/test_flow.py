"""The real brain over a real I/O process: what hangs or fails costs nothing but itself, and heals."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from kvtier.brain import TieredCache, TierSpec, Why
from kvtier.facts import TierFacts
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.policy import AdmissionPolicy
from kvtier.types import BlockKey, GroupSpec, OpResult, ScanBatch, WriteMode
from tests.io_process.rig import GROUP_NBYTES, Rig, file_tier, key_of, rewrite, rig
from tests.patience import until

SLOTS = 32
DEADLINE_S = 0.5


class Own(AdmissionPolicy):
    """Admits to the first tier the chunks from 100 on, to the second those from 200 on, and so on."""

    def __init__(self, facts: TierFacts, hundred: int) -> None:
        super().__init__(facts)
        self._hundred = hundred

    def admits(self, key: BlockKey, end_token: int) -> bool:
        return _number(key) // 100 == self._hundred


class Whole:
    """One rank's engine without an engine: every step hands operations down and answers up."""

    def __init__(self, io: Rig, tiers: Sequence[str]) -> None:
        self.io = io
        self.told: list[OpResult] = []
        self.brain = TieredCache(
            groups=[GroupSpec(0, 16, None, GROUP_NBYTES[0])],
            ranks=1,
            tier0=LruPolicy,
            lower=[
                TierSpec(
                    name=name,
                    capacity=1 << 24,
                    write=WriteMode.THROUGH,
                    deadline_s=DEADLINE_S,
                    persistent=True,
                    eviction=LruPolicy,
                    admission=partial(Own, hundred=i),
                )
                for i, name in enumerate(tiers, 1)
            ],
            low_watermark=0.0,
        )
        self.brain.open(SLOTS, '{"model": "whole"}')
        self.until(lambda: all(map(self.brain.view.serving, range(1, len(tiers) + 1))))

    def step(self) -> None:
        self.io.submit(*self.brain.drain())
        for item in self.io.client.poll():
            if isinstance(item, ScanBatch):
                self.brain.scanned(item)
            else:
                self.told.append(item)
                self.brain.complete([item])
        self.brain.check()

    def until(self, done: Callable[[], object], what: str = "the brain sees to it") -> None:
        until(done, what, self.step)

    def store(self, keys: list[BlockKey]) -> None:
        """Let a request compute its prefix, and wait until every tier has it."""
        self.brain.arrive("store", [keys])
        plan = self.brain.plan_store("store", keys)
        for key, slot in zip(plan.keys, plan.slots, strict=True):
            self.io.fill(slot, _number(key))
        self.brain.finish(plan.plan_id)
        self.brain.depart("store")
        self.until(lambda: not self.brain.view.pending())

    def hit(self, keys: list[BlockKey]) -> int:
        """Let a request come with a prefix; return how many of its chunks it hits, right ones, in the end."""
        brain = self.brain
        brain.arrive("hit", [keys])
        while True:
            self.until(lambda: brain.ready("hit"))
            n = next((i for i, key in enumerate(keys) if not brain.lookup("hit", key)), len(keys))
            if not n or brain.plan_read("hit", keys[:n]) is None:
                break
        for key in keys[:n]:
            chunk = self.io.arena.slot(brain.view.slot(key))[: GROUP_NBYTES[0]]
            expected = self.io.fill(SLOTS, _number(key))  # the slot after the brain's
            assert bytes(chunk) == bytes(expected)
        brain.depart("hit")
        return n

    def empty(self) -> None:
        """Send everything down from tier 0."""
        self.brain._demotion.make_room(SLOTS)
        self.until(lambda: not self.brain.stats().tiers[0].chunks)


def _number(key: BlockKey) -> int:
    return int.from_bytes(key[:32], "little")


def prefix(first: int, n: int) -> list[BlockKey]:
    return [BlockKey(key_of(first + i)) for i in range(n)]


@contextmanager
def whole(path: Path, tiers: Sequence[str]) -> Iterator[Whole]:
    """Make an engine with file tiers whose faults are in `<name>.json`."""
    made = []
    for name in tiers:
        faulty = {"kind": "faulty", "options": {"control": str(path / f"{name}.json")}}
        made.append(file_tier(path / name, name=name, wrappers=[faulty], deadline_s=DEADLINE_S))
    with rig(made, slots=SLOTS + 1, open_now=False, threads=4) as io:
        io.path = path
        yield Whole(io, tiers)
        for name in tiers:
            rewrite(path / f"{name}.json", {})


def test_a_hung_tier_takes_no_hit_from_the_one_beside_it(tmp_path: Path) -> None:
    far, near = prefix(100, 16), prefix(200, 8)
    with whole(tmp_path, ["far", "near"]) as made:
        made.store(far)
        made.store(near)
        made.empty()
        rewrite(tmp_path / "far.json", {"hang": True})
        assert made.hit(far) == 0
        for _ in range(3):
            assert made.hit(near) == 8
            made.empty()
        assert made.brain.stats().load_refusals == {Why.LATE: 1}
        made.until(lambda: not made.brain.view.serving(1), "a read that hangs rests its tier")
        rewrite(tmp_path / "far.json", {})
        made.until(lambda: not made.brain.view.pending())
        assert made.hit(far) == 16
        assert made.hit(near) == 8


def spoil(made: Whole, key: BlockKey, *, directory: bool) -> None:
    """Put a directory in the place of a record, or damage its payload."""
    (record,) = made.io.path.rglob(f"{key.hex()}.kvt")
    if directory:
        record.unlink()
        record.mkdir()
    else:
        data = bytearray(record.read_bytes())
        data[5000] ^= 1
        record.write_bytes(data)


@pytest.mark.parametrize("directory", [True, False])
def test_a_bad_record_that_cannot_be_removed_is_read_no_more(
    tmp_path: Path, directory: bool
) -> None:
    """A directory under its name; or damage on a medium that removes nothing."""
    keys = prefix(100, 6)
    with whole(tmp_path, ["disk"]) as made:
        made.store(keys)
        made.empty()
        spoil(made, keys[2], directory=directory)
        rewrite(tmp_path / "disk.json", {"remove_errno": "EPERM", "key": keys[2].hex()})
        for _ in range(3 if directory else 1):  # failures count if others are read between them
            assert made.hit(keys) == 2
            made.empty()
        assert not made.brain.lookup("nobody", keys[2])
        made.until(lambda: any("remove" in result.error for result in made.told))
        before = len(made.told)
        for _ in range(50):
            made.step()
        assert len(made.told) - before <= 2, "it waits for its turn, a second and more"
        stats = made.brain.stats().tiers[1]
        assert (stats.trips, stats.chunks) == (0, 5)
        if not directory:
            rewrite(tmp_path / "disk.json", {})
            made.until(lambda: not made.brain.view.pending())
            made.store(keys)
            made.empty()
            assert made.hit(keys) == 6
