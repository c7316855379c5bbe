"""Files written for a user: whole, or what was there before."""

import errno
import os
from pathlib import Path

import pytest

from kvtier.cli.outputs import check_writable, save
from kvtier.errors import ConfigError


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    check_writable(None, tmp_path / "report.html")
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "report.html")
    for file in (tmp_path, tmp_path / "missing" / "report.html", tmp_path / "link"):
        with pytest.raises(ConfigError, match="cannot be written"):
            check_writable(None, file)


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    save(file, "old")
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()
    file.chmod(0o640)
    save(file, "new")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kvtier.yaml"
    save(file, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EACCES])
def test_what_cannot_be_replaced_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A mount point, a file in somebody else's directory."""
    file = tmp_path / "kvtier.yaml"
    save(file, "old")

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refused)
    save(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_of_somebody_else_s_stays_theirs(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    save(file, "old")
    os.chown(file, 1000, 1000)
    save(file, "new")
    assert (file.read_text(), file.stat().st_uid) == ("new", 1000)


def test_links_and_pipes_are_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    save(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    save(Path("/dev/null"), "gone")
    assert not Path("/dev/null").is_file()


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask
