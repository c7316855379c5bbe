"""Records damaged on disk, behind the process's back: a miss each time, and the record is gone."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier.io_process.record import namespace_of
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import MANIFEST, Rig, file_tier, key_of, rig

NUMBERS = range(6)


@pytest.fixture(scope="module", params=["raw", "zstd"])
def io(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    path = tmp_path_factory.mktemp("damage")
    with rig([file_tier(path, request.param)]) as made:
        made.path = path
        yield made


@pytest.fixture(autouse=True)
def _records(io: Rig) -> None:
    for number in NUMBERS:
        io.fill(number)
    io.run(*[io.op(OpKind.WRITE, number) for number in NUMBERS])


def path_of(io: Rig, number: int) -> Path:
    name = key_of(number).hex()
    found = list(io.path.rglob(f"r0/*/{name}.kvt"))
    assert len(found) == 1
    return found[0]


def expect_corrupt(io: Rig, number: int, reason: str = "") -> None:
    """The damaged record is a miss, then absent; its neighbours are well."""
    result = io.one(OpKind.READ, number, slot=40)
    assert result.status is OpStatus.CORRUPT, result
    assert reason in result.error
    assert io.one(OpKind.READ, number, slot=40).status is OpStatus.MISSING
    assert io.one(OpKind.READ, 5, slot=41).status is OpStatus.OK
    assert np.array_equal(io.arena.slot(41)[:20000], io.arena.slot(5)[:20000])


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))


@pytest.mark.parametrize(
    "at",
    [
        *(0, 8, 10, 12, 16, 32, 36, 40, 48, 56, 64, 65, 66, 130, 194, 210, 300, 4095),  # header
        *(4096, 5000, 8191, 8192, 9999, -4096, -1),  # payload and padding
    ],
)
def test_a_flipped_byte(io: Rig, at: int) -> None:
    flip(path_of(io, 0), at)
    expect_corrupt(io, 0)


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, 8192, -4096, -1])
def test_truncated(io: Rig, nbytes: int) -> None:
    path = path_of(io, 0)
    os.truncate(path, nbytes if nbytes > 0 else path.stat().st_size + nbytes)
    expect_corrupt(io, 0)


def test_emptied(io: Rig) -> None:
    os.truncate(path_of(io, 0), 0)
    assert io.one(OpKind.READ, 0, slot=40).status is not OpStatus.OK


@pytest.mark.parametrize("nbytes", [1, 512, 4096, 1 << 20])
def test_extended(io: Rig, nbytes: int) -> None:
    with open(path_of(io, 0), "ab") as file:
        file.write(bytes(nbytes))
    expect_corrupt(io, 0)


def test_zeroed_as_after_a_power_cut(io: Rig) -> None:
    path = path_of(io, 0)
    path.write_bytes(bytes(path.stat().st_size))
    expect_corrupt(io, 0, "not a record")


def test_swapped(io: Rig) -> None:
    paths = path_of(io, 0), path_of(io, 1)
    aside = paths[0].with_suffix(".aside")
    os.rename(paths[0], aside)
    os.rename(paths[1], paths[0])
    os.rename(aside, paths[1])
    expect_corrupt(io, 0, "key differs")
    expect_corrupt(io, 1, "key differs")


def test_of_another_group(io: Rig) -> None:
    io.fill(2, group=1)
    assert io.one(OpKind.WRITE, 2, group=1).status is OpStatus.OK
    expect_corrupt(io, 2, "group differs")


def from_elsewhere(tmp_path: Path, manifest: str, setup: dict[str, Any]) -> Path:
    """Write record 0 in another engine's directory and return it."""
    with rig([file_tier(tmp_path)], open_now=False, **setup) as other:
        other.open(manifest)
        other.fill(0)
        assert other.one(OpKind.WRITE, 0).status is OpStatus.OK
    return next(tmp_path.rglob("*.kvt"))


@pytest.mark.parametrize(
    ("manifest", "setup", "reason"),
    [
        ("another model", {}, "namespace differs"),
        (MANIFEST, {"rank": 1, "local_ranks": 2}, "rank differs"),
        (MANIFEST, {"group_nbytes": {0: 16384}}, "raw_nbytes differs"),
    ],
)
def test_of_another_engine(
    io: Rig, tmp_path: Path, manifest: str, setup: dict[str, Any], reason: str
) -> None:
    shutil.copyfile(from_elsewhere(tmp_path, manifest, setup), path_of(io, 0))
    expect_corrupt(io, 0, reason)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.unlink(),
        lambda path: shutil.rmtree(path.parent),
    ],
)
def test_deleted_under_its_feet(io: Rig, break_it: Callable[[Path], None]) -> None:
    break_it(path_of(io, 0))
    assert io.one(OpKind.READ, 0, slot=40).status is OpStatus.MISSING
    assert io.one(OpKind.WRITE, 0).status is OpStatus.OK


def test_a_directory_in_its_place_is_an_error(io: Rig) -> None:
    path = path_of(io, 0)
    path.unlink()
    path.mkdir()
    assert io.one(OpKind.READ, 0, slot=40).status is OpStatus.ERROR
    assert io.one(OpKind.WRITE, 0).status is OpStatus.ERROR
    path.rmdir()


def test_the_whole_namespace_deleted_is_errors_until_a_probe(io: Rig) -> None:
    shutil.rmtree(io.path / namespace_of(MANIFEST))
    assert io.one(OpKind.READ, 0, slot=40).status is OpStatus.MISSING
    assert io.one(OpKind.WRITE, 0).status is OpStatus.ERROR
    assert io.one(OpKind.PROBE).status is OpStatus.MISSING, "well again, and all is gone"
    assert io.one(OpKind.WRITE, 0).status is OpStatus.OK
