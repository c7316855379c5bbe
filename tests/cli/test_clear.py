"""`kvtier clear`, run as its users run it, on directories that real engines' processes wrote."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.io_process.record import namespace_of
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import MANIFEST, file_tier, rig
from tests.patience import HANG_S

OLD = "another model"


def run(*words: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvtier.cli", "clear", *map(str, words)],
        capture_output=True,
        text=True,
        stdin=stdin,
        env={**os.environ, "COLUMNS": "200"},
        timeout=HANG_S,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of one namespace, opened 100 days ago, and one of another; a letter that is not ours; trash."""
    tier = tmp_path / "kv"
    for manifest in (OLD, MANIFEST):
        with rig([file_tier(tier)], open_now=False) as io:
            io.open(manifest)
            io.fill(0)
            assert io.one(OpKind.WRITE, 0).status is OpStatus.OK
    opened = tier / namespace_of(OLD) / "manifest.json"
    long_ago = opened.stat().st_mtime - 100 * 86400
    os.utime(opened, (long_ago, long_ago))
    (tier / "letter.txt").write_text("not kvtier's")
    (tier / ".trash-r0-1-1").mkdir()
    return tier


def kept(path: Path) -> set[str]:
    return {found.parents[2].name for found in path.rglob("*.kvt")}


def test_everything_of_the_tier_goes_and_nothing_else(path: Path) -> None:
    done = run(path, "--yes")
    assert done.returncode == 0, done.stderr
    assert "removed" in done.stdout
    assert not kept(path)
    assert not list(path.glob(".trash-*"))
    assert (path / "letter.txt").read_text() == "not kvtier's"
    assert "nothing to remove" in run(path, "--yes").stdout


def test_only_what_is_idle_for_long(path: Path) -> None:
    done = run(path, "--idle-days", "30", "--yes", "--json")
    (removed,) = json.loads(done.stdout)
    assert removed["path"].endswith(namespace_of(OLD))
    assert removed["removed"]
    assert 99 < removed["idle_days"] < 101
    assert kept(path) == {namespace_of(MANIFEST)}


def test_nobody_who_could_be_asked(path: Path) -> None:
    done = run(path)
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert namespace_of(OLD) in done.stdout, "what would be removed is shown"
    assert len(kept(path)) == 2


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 2), (b"\n", 2), (b"y\n", 0)])
def test_it_asks(path: Path, answer: bytes, left: int) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        done = run(path, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode == 0) == (left == 0)
    assert "Remove" in done.stderr
    assert len(kept(path)) == left


def test_an_engine_keeps_what_it_uses(path: Path) -> None:
    with rig([file_tier(path)]) as io:
        done = run(path, "--yes")
        assert done.returncode == 1
        assert "stop that engine first" in done.stderr
        assert io.one(OpKind.READ, 0, slot=1).status is OpStatus.OK
    assert len(kept(path)) == 2


def test_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("not kvtier's")
    (path / namespace_of(MANIFEST) / "r7").symlink_to(letters)
    assert run(path, "--yes").returncode == 0
    assert (letters / "letter.txt").exists()


def test_a_directory_that_is_no_tiers(tmp_path: Path) -> None:
    done = run(tmp_path, "--yes")
    assert done.returncode == 1
    assert "was never the directory of a file tier" in done.stderr
