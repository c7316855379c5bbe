"""What is on a disk, records, other namespaces and what is on its way out, never exceeds the capacity."""

import os
from contextlib import suppress
from pathlib import Path

from kvtier.types import OpKind, WriteMode
from tests.io_process.node import NBYTES, node
from tests.io_process.rig import file_tier, rig

CAPACITY = 48 * NBYTES


def weigh(path: Path) -> int:
    """Sum the bytes of all records, whole or half written, wherever they are."""
    sizes = {}
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith((".kvt", ".partial")):
                with suppress(FileNotFoundError):
                    found = os.stat(f"{folder}/{name}")
                    sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def test_never_above_the_capacity_although_resets_leave_namespaces_behind(tmp_path: Path) -> None:
    path, most = tmp_path / "kv", 0
    with rig([file_tier(path)]) as io:
        for i in range(12):
            io.fill(i)
        io.run(*[io.op(OpKind.WRITE, i) for i in range(12)])
    foreign = weigh(path)
    assert CAPACITY // 2 < foreign < CAPACITY
    with node(path, 1, CAPACITY, WriteMode.THROUGH, manifest="another model") as made:
        for epoch in range(3):
            made.until(made.settled, "the tier is open")
            for i in range(1 + 6 * (epoch > 0)):  # at first there is room beside what others have
                made.store(f"{epoch}-{i}", range(100 * i, 100 * i + 5))
                for _ in range(20):
                    made.step()
                    most = max(most, weigh(path))
            made.until(made.settled, "all is written or removed")
            made.brain.check()
            assert most <= CAPACITY
            chunks = made.brain.stats().tiers[1].chunks
            assert chunks >= (24 if epoch else 5), "what others left goes before our own"
            made.brain.reset(f"another epoch {epoch}")


def test_a_reset_says_what_others_have(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path / "kv")]) as io:
        io.fill(1)
        io.one(OpKind.WRITE, 1)
    with rig([file_tier(tmp_path / "kv")], open_now=False) as io:
        before = io.open("another model").nbytes
        assert before >= 24576
        assert io.one(OpKind.RESET, text="another epoch").nbytes >= before
