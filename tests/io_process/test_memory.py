"""Memory and file as two tiers of one I/O process: each holds its own records, and only one outlives it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import ConfigError
from kvtier.topology import numa_nodes
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import MANIFEST, Rig, file_tier, rig

NBYTES = 1 << 20


def memory_tier(**more: object) -> dict[str, object]:
    tier = {"name": "far", "kind": "memory", "capacity": NBYTES, "numa": list(numa_nodes()[:1])}
    return {**tier, "codec": {"kind": "zstd", "options": {}}, **more}


@pytest.fixture
def io(tmp_path: Path) -> Iterator[Rig]:
    with rig([memory_tier(), file_tier(tmp_path / "kv")]) as made:
        assert made.one(OpKind.OPEN, tier=2, text=MANIFEST).status is OpStatus.OK
        yield made


def test_each_tier_holds_its_own_records(io: Rig) -> None:
    chunk = io.fill(0)
    io.fill(1)
    memory = io.one(OpKind.WRITE, 0)
    assert memory.status is io.one(OpKind.WRITE, 1, tier=2).status is OpStatus.OK
    assert memory.nbytes < len(chunk)  # compressed DRAM
    assert io.one(OpKind.READ, 0, slot=9).status is OpStatus.OK
    assert np.array_equal(io.arena.slot(9)[: len(chunk)], chunk)
    assert io.one(OpKind.READ, 0, slot=9, tier=2).status is OpStatus.MISSING
    assert io.one(OpKind.READ, 1, slot=9).status is OpStatus.MISSING
    assert io.one(OpKind.PROBE).status is io.one(OpKind.PROBE, tier=2).status is OpStatus.OK


def test_it_tells_where_its_memory_is(tmp_path: Path) -> None:
    with rig([memory_tier()]) as io:
        io.until(lambda: io.client.placed, "it tells where its memory is")
        told = io.client.placed
    assert {(each.rank, each.tier, each.node) for each in told} == {(0, 1, numa_nodes()[0])}
    assert 0 < told[0].nbytes <= NBYTES


def test_a_full_memory_says_so_and_serves_on(io: Rig) -> None:
    io.arena.slot(0)[:] = np.random.default_rng(0).integers(0, 256, io.arena.slot_nbytes)
    statuses = [io.one(OpKind.WRITE, n, slot=0) for n in range(NBYTES // (20480 + 4096) + 1)]
    assert statuses[-1].status is OpStatus.ERROR
    assert "are free" in statuses[-1].error
    assert {each.status for each in statuses[:-1]} == {OpStatus.OK}
    assert io.one(OpKind.REMOVE, 0).status is OpStatus.OK
    assert io.one(OpKind.WRITE, 0, slot=0).status is OpStatus.OK


def test_after_a_death_memory_is_empty_and_files_are_there(io: Rig) -> None:
    io.fill(0)
    io.one(OpKind.WRITE, 0)
    io.one(OpKind.WRITE, 0, tier=2)
    before = io.client.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    io.until(lambda: io.client.alive and io.client.pid != before)
    assert io.one(OpKind.READ, 0, slot=9).status is OpStatus.MISSING
    assert io.one(OpKind.READ, 0, slot=9, tier=2).status is OpStatus.OK


def test_more_than_there_is_stops_the_start_in_words() -> None:
    with (
        pytest.raises(ConfigError, match="tier 'far': capacity: "),
        rig([memory_tier(capacity=1 << 60)]),
    ):
        pass


def test_several_tiers_share_what_is_left_for_them() -> None:
    tiers = [memory_tier(capacity=NBYTES, name=name) for name in ("near", "far")]
    with rig(tiers, spare_nbytes=2 * NBYTES):
        pass
    words = r"tier 'far': capacity: 1MiB per rank, and 1020KiB of memory are left for it"
    with pytest.raises(ConfigError, match=words), rig(tiers, spare_nbytes=2 * NBYTES - 4096):
        pass


def test_who_takes_the_place_of_a_dead_one_may_have_what_that_had() -> None:
    """By then the arena has its part, and less is free: it was counted at the start."""
    with rig([memory_tier()], spare_nbytes=NBYTES) as io:
        before = io.client.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        io.until(lambda: io.client.alive and io.client.pid != before)
        assert io.one(OpKind.OPEN, text=MANIFEST).status is OpStatus.OK
