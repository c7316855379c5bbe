"""`kvtier check`, run as its users run it, on directories that real engines' processes wrote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.io_process.record import namespace_of
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import MANIFEST, file_tier, key_of, rig
from tests.patience import HANG_S


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvtier.cli", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=HANG_S,
    )


def record(path: Path, number: int) -> Path:
    return next(path.rglob(f"{key_of(number).hex()}.kvt"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten records of one namespace, two of another."""
    for manifest, count in ((MANIFEST, 10), ("another model", 2)):
        with rig([file_tier(tmp_path / "kv", "zstd")], open_now=False) as io:
            io.open(manifest)
            for i in range(count):
                io.fill(i)
            results = io.run(*[io.op(OpKind.WRITE, i) for i in range(count)])
            assert {result.status for result in results} == {OpStatus.OK}
    return tmp_path / "kv"


def test_a_directory_that_is_no_tiers_is_not_called_good(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for how in ([], ["--json"], ["--fix"]):
        done = run(tmp_path / "letters", *how)
        assert done.returncode == 1
        assert "was never the directory of a file tier" in done.stderr
        assert not done.stdout


def test_a_tier_without_records_is_not_called_good(path: Path) -> None:
    for namespace in [found for found in path.iterdir() if found.is_dir()]:
        shutil.rmtree(namespace)
    done = run(path, "--json")
    assert done.returncode == 1
    assert "has no records" in done.stderr
    assert json.loads(done.stdout)["namespaces"] == []


def test_a_good_directory(path: Path) -> None:
    done = run(path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if namespace_of(MANIFEST) in line]
    assert rows
    assert [cell.strip() for cell in rows[0].split("│")[2:5:2]] == ["10", "0"]


def test_json(path: Path) -> None:
    done = run(path, "--json")
    report = json.loads(done.stdout)
    assert sorted(n["records"] for n in report["namespaces"]) == [2, 10]
    assert report["bad"] == report["leftovers"] == report["in_use_by"] == []
    assert not report["fixed"]


def damage(path: Path) -> dict[str, str]:
    """Damage a directory in every way; what `check` should say of each file."""
    home = path / namespace_of(MANIFEST) / "r0"
    other = path / namespace_of("another model") / "r0"
    flipped, cut, moved, foreign = (record(home, i) for i in range(4))
    content = bytearray(flipped.read_bytes())
    content[5000] ^= 1
    flipped.write_bytes(content)
    os.truncate(cut, 4096)
    shard = home / "77"
    shard.mkdir(mode=0o700)
    displaced = moved.rename(shard / f"{'77' * 36}.kvt")
    foreign.write_bytes(record(other, 1).read_bytes())
    stray = home / "stray"
    stray.write_text("?")
    return {
        str(flipped): "payload checksum differs",
        str(cut): "the record has 4096 bytes",
        str(displaced): "key differs from its name",
        str(foreign): "namespace differs from its directory",
        str(stray): "not a record's name",
    }


def test_finds_all_that_is_bad_and_changes_nothing(path: Path) -> None:
    expected = damage(path)
    done = run(path, "--json")
    assert done.returncode == 1
    found = {bad["path"]: bad["fault"] for bad in json.loads(done.stdout)["bad"]}
    assert found.keys() == expected.keys()
    assert all(found[p].startswith(fault) for p, fault in expected.items())
    said = run(path)
    assert said.returncode == 1
    assert all(p in said.stdout for p in expected)
    assert "--fix" in said.stdout


def test_fix_removes_what_is_bad_and_left_over_only(path: Path) -> None:
    expected = damage(path)
    partial = path / namespace_of(MANIFEST) / "r0" / "partial" / "ab.0.partial"
    partial.write_text("half")
    trash = path / ".trash-r0-1-1"
    trash.mkdir()
    assert len(json.loads(run(path, "--json").stdout)["leftovers"]) == 2
    done = run(path, "--fix")
    assert done.returncode == 0, done.stderr
    assert f"removed {len(expected)} bad, 2 left over" in done.stdout
    assert not partial.exists()
    assert not trash.exists()
    report = json.loads(run(path, "--json").stdout)
    assert report["bad"] == []
    assert sum(n["records"] for n in report["namespaces"]) == 12 - 4


def test_a_live_engine_is_read_and_never_fixed(path: Path) -> None:
    with rig([file_tier(path)]) as io:
        read = run(path)
        assert read.returncode == 0
        assert f"in use by a live engine, r0 (pid {io.client.pid})" in read.stdout
        fixed = run(path, "--fix")
        assert fixed.returncode == 1
        assert "stop that engine first" in fixed.stderr
        assert io.one(OpKind.READ, 1, slot=1).status is OpStatus.OK


def test_data_parallel_engines_are_found(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)], engine=1) as io:
        io.fill(0)
        io.one(OpKind.WRITE, 0)
    assert [n["records"] for n in json.loads(run(tmp_path, "--json").stdout)["namespaces"]] == [1]


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing")
    assert done.returncode == 1
    assert "is not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_fix_follows_no_link_and_waits_for_no_fifo(path: Path, tmp_path: Path) -> None:
    letter = tmp_path / "precious" / "docs" / "letter.txt"
    letter.parent.mkdir(parents=True)
    letter.write_text("do not remove")
    namespace = path / namespace_of(MANIFEST)
    (namespace / "r1").symlink_to(letter.parent.parent)
    (namespace / "r0" / "99").symlink_to(letter.parent)
    fifo = namespace / "r0" / "77" / f"{'77' * 36}.kvt"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    sparse = fifo.with_name(f"{'77' * 35}78.kvt")
    sparse.touch()
    os.truncate(sparse, 1 << 40)
    done = run(path, "--fix")
    assert done.returncode == 0, done.stderr
    assert letter.read_text() == "do not remove"
    assert not fifo.exists()
    assert not sparse.exists()
