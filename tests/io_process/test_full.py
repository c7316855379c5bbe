"""Media without room, read-only, or removed: no room is no fault, and no start is refused for it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.errors import ConfigError, TierError
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import MANIFEST, Rig, file_tier, rig
from tests.mounts import SmallDisk, small_disk

RECORD = 24576


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", "size=400k") as made:
        yield made


def write(io: Rig, *numbers: int) -> list[OpStatus]:
    for i in numbers:
        io.fill(i)
    return [result.status for result in io.run(*[io.op(OpKind.WRITE, i) for i in numbers])]


def open_status(io: Rig) -> OpStatus:
    return io.one(OpKind.OPEN, text=MANIFEST).status


def test_what_a_full_disk_does_not_take_is_no_error(
    disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    with rig([file_tier(disk.path)]) as io:
        for i in range(24):
            io.fill(i)
        results = io.run(*[io.op(OpKind.WRITE, i) for i in range(24)])
        assert {result.status for result in results} == {OpStatus.OK, OpStatus.NO_ROOM}
        well = [i for i, result in enumerate(results) if result.status is OpStatus.OK]
        assert all(0 <= r.free < 4 * RECORD for r in results if r.status is OpStatus.NO_ROOM)
        assert 0 <= io.one(OpKind.ROOM, nbytes=RECORD).free < 4 * RECORD
        assert io.one(OpKind.READ, well[0], slot=40).status is OpStatus.OK
        assert io.one(OpKind.PROBE).status is OpStatus.OK, "it is well, and full"
        io.run(*[io.op(OpKind.REMOVE, i) for i in well[:4]])
        assert io.one(OpKind.ROOM, nbytes=RECORD).free >= 4 * RECORD
        assert write(io, 0) == [OpStatus.OK]
    assert capfd.readouterr().err.count("has no room") == 1


def test_a_quota_is_no_room_and_what_is_free_does_not_count(tmp_path: Path) -> None:
    quota = {"kind": "faulty", "options": {"write_errno": "EDQUOT"}}
    with rig([file_tier(tmp_path, wrappers=[quota])]) as io:
        io.fill(1)
        result = io.one(OpKind.WRITE, 1)
        assert (result.status, result.free) == (OpStatus.NO_ROOM, -1)
        assert io.one(OpKind.PROBE).status is OpStatus.OK


def test_no_inodes_are_no_room(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "small", "size=4m,nr_inodes=24") as disk,
        rig([file_tier(disk.path)]) as io,
    ):
        assert {*write(io, *range(24))} == {OpStatus.OK, OpStatus.NO_ROOM}
        assert io.one(OpKind.ROOM, nbytes=RECORD).free < 4 * RECORD


def test_an_engine_starts_on_a_full_disk_and_reads_what_is_there(
    disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    with rig([file_tier(disk.path)]) as io:
        assert write(io, 1) == [OpStatus.OK]
    disk.fill()
    with rig([file_tier(disk.path)]) as io:
        assert [key for batch in io.scans for key in batch.keys] == [io.op(OpKind.READ, 1).key]
        assert io.one(OpKind.READ, 1, slot=40).status is OpStatus.OK
        assert write(io, 2) == [OpStatus.NO_ROOM]
        disk.free()
        assert write(io, 2) == [OpStatus.OK]
    assert "O_DIRECT" not in capfd.readouterr().err


def test_an_engine_starts_on_a_full_disk_without_records(disk: SmallDisk) -> None:
    disk.fill()
    with rig([file_tier(disk.path / "kv")], open_now=False) as io:
        assert open_status(io) is OpStatus.NO_ROOM
        disk.free()
        assert open_status(io) is OpStatus.OK
        assert write(io, 1) == [OpStatus.OK]


def test_an_engine_starts_without_a_free_inode(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "size=4m,nr_inodes=3") as disk:
        disk.fill()
        (disk.path / "last").touch()
        with rig([file_tier(disk.path / "kv")], open_now=False) as io:
            assert open_status(io) is OpStatus.NO_ROOM


def test_the_records_of_another_model_make_way_for_a_new_one(disk: SmallDisk) -> None:
    with rig([file_tier(disk.path)]) as io:
        assert write(io, *range(4)) == [OpStatus.OK] * 4
    disk.fill()
    with rig([file_tier(disk.path)], open_now=False) as io:
        assert io.one(OpKind.OPEN, text='{"model": "another"}').status is OpStatus.OK
        assert write(io, 1) == [OpStatus.OK]


def test_an_engine_starts_on_a_read_only_disk(disk: SmallDisk) -> None:
    with rig([file_tier(disk.path)]) as io:
        assert write(io, 1) == [OpStatus.OK]
    disk.remount("ro")
    with rig([file_tier(disk.path)], open_now=False) as io:
        assert open_status(io) is OpStatus.ERROR
        disk.remount("rw")
        io.open()
        assert io.one(OpKind.READ, 1, slot=40).status is OpStatus.OK


@pytest.mark.parametrize("what", ["", "kv"])
def test_a_directory_that_is_removed_is_made_and_locked_again(tmp_path: Path, what: str) -> None:
    path = tmp_path / "disk" / "kv"
    with rig([file_tier(path)]) as io:
        assert write(io, 1) == [OpStatus.OK]
        shutil.rmtree(tmp_path / "disk" / what)
        assert write(io, 2) == [OpStatus.ERROR]
        assert io.one(OpKind.PROBE).status is OpStatus.MISSING, "well again, and nothing there"
        assert write(io, 2) == [OpStatus.OK]
        assert io.one(OpKind.PROBE).status is OpStatus.OK
        with pytest.raises(ConfigError, match=f"pid {io.client.pid}"):
            FileTier(FileConfig(path=str(path)), Site("other"), lock_timeout_s=0.1)


def test_who_took_a_removed_directory_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with rig([file_tier(path)]) as first:
        assert write(first, 1) == [OpStatus.OK]
        shutil.rmtree(path)
        with rig([file_tier(path)]) as second:
            assert write(second, 1) == [OpStatus.OK]
            assert write(first, 2) == [OpStatus.ERROR]
            assert "in use" in first.one(OpKind.PROBE).error
            assert first.one(OpKind.RESET, text='{"epoch": 2}').status is OpStatus.ERROR
            assert second.one(OpKind.READ, 1, slot=40).status is OpStatus.OK
        assert first.one(OpKind.RESET, text='{"epoch": 2}').status is OpStatus.OK


def test_what_was_on_a_disk_of_its_own_does_not_go_on_in_the_mount_point(tmp_path: Path) -> None:
    if os.stat(tmp_path).st_dev != os.stat("/").st_dev:
        pytest.skip("the folder of the tests is on a file system of its own")
    with small_disk(tmp_path / "mnt", "size=400k") as disk:
        tier = FileTier(FileConfig(path=str(disk.path / "kv")), Site("kv"))
        tier.open("ab" * 16, MANIFEST)
        disk.detach()
        with pytest.raises(TierError, match="not mounted"):
            tier.open("ab" * 16, MANIFEST)
        assert not any(disk.path.iterdir())
        with small_disk(disk.path, "size=400k"):
            tier.open("ab" * 16, MANIFEST)
            tier.close()


@pytest.mark.parametrize(("capacity", "lines"), [(1 << 30, 1), (300 << 10, 0)])
def test_a_capacity_that_the_disk_has_not_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], capacity: int, lines: int
) -> None:
    with (
        small_disk(tmp_path / "small", "size=400k,nr_inodes=60") as disk,
        rig([file_tier(disk.path, capacity=capacity)]) as io,
    ):
        write(io, 1, 2)
        io.open()
    assert capfd.readouterr().err.count("its medium has room for") == lines


def test_only_what_no_retry_cures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/1/nothing")):
        with pytest.raises(ConfigError), rig([file_tier(path)]):
            pass
