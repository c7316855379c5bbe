"""A tier's directory full of things that are not the tier's: none is followed, touched, truncated or removed."""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.errors import KvtierError
from kvtier.io_process.record import namespace_of
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.types import PAGE
from tests.fuzz.scale import examples
from tests.io_process.rig import MANIFEST, key_of

OWN = namespace_of(MANIFEST)
OTHER = namespace_of("another model")
MD5 = "d41d8cd98f00b204e9800998ecf8427e"
KEY = key_of(3)
RECORD = f"{KEY.hex()[:2]}/{KEY.hex()}.kvt"
NAMES = [
    *(f"{OWN}/r0/{RECORD}", f"{OWN}/r0/{KEY.hex()[:2]}", f"{OWN}/r0/ff/x.kvt", f"{OWN}/r0/ff/.kvt"),
    *(f"{OWN}/r0/partial/ab.0.partial", f"{OWN}/r0/partial", f"{OWN}/r0", f"{OWN}/r1", f"{OWN}/r01x"),
    *(f"{OWN}/manifest.json", f"{OWN}/.manifest.json.1.partial", f"{OWN}/thesis.tex", OWN),
    *(f"{OTHER}/manifest.json", f"{OTHER}/r0/00/aa.kvt", f"{OTHER}/r0", OTHER, f"{OTHER}/x"),
    *(f"{MD5}/thesis.tex", MD5, "r0.lock", "r1.lock", "r0.lock.d", "dp0", "dp1/r0.lock", "dpx"),
    *(".trash-r0-1-2", ".trash-me-not", ".trash-r0-1-2/x", ".trash-rNone-7-8", ".kvtier-probe-x"),
    *("notes.txt", "\udcff\udcfe", "a\nb", " ", "r0", "manifest.json", "lost+found/x", "e" * 200),
]  # fmt: skip
KINDS = [
    "file",
    "link to a file",
    "link to a directory",
    "loop",
    "dangling",
    "fifo",
    "socket",
    "device",
    "directory",
    "huge",
]
ENTRIES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS), st.sampled_from([0o600, 0o000, 0o777])),
    max_size=7,
    unique_by=lambda entry: entry[0],
)  # fmt: skip


def make(path: Path, kind: str, mode: int, outside: Path) -> None:
    """Put one thing in the directory, where that is possible beside what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    links = {
        "link to a file": outside / "docs" / "letter.txt",
        "link to a directory": outside,
        "loop": path,
        "dangling": outside / "nothing",
    }
    if kind in links:
        path.symlink_to(links[kind])
        return
    MAKERS[kind](path)
    path.chmod(mode)


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _directory(path: Path) -> None:
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "letter.txt").write_text("mine too")


MAKERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"mine"),
    "huge": _huge,
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),  # /dev/zero
    "directory": _directory,
}


def outsiders(folder: Path) -> Path:
    """What others have, and links may name."""
    outside = folder / "outside"
    for place in ("docs", f"{OTHER}/r0/00", "00", "partial", "r0/00"):
        (outside / place).mkdir(parents=True)
        (outside / place / "letter.txt").write_text("do not touch")
        (outside / place / "aa.kvt").write_text("do not touch")
    return outside


def picture(folder: Path) -> dict[str, object]:
    """Everything below a folder: kind, mode, size, content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
        found[str(path)] = (seen.st_mode, seen.st_size, seen.st_mtime_ns, content)
    return found


def ours(name: str) -> bool:
    """Whether a tier, or `check --fix`, may remove what has this name."""
    top, _, rest = name.partition("/")
    if top in (OWN, OTHER):
        return rest.split("/")[0] in ("", "r0", "r1", "manifest.json", ".manifest.json.1.partial")
    return top in (".trash-r0-1-2", ".trash-rNone-7-8") or name == "r0.lock"


def use(base: Path) -> None:
    """Do all that a tier does."""
    page = np.frombuffer(bytearray(PAGE), np.uint8)
    with suppress(KvtierError):
        tier = FileTier(FileConfig(path=str(base)), Site("fuzz"), lock_timeout_s=0.1)
        try:
            for act in (
                lambda: tier.open(OWN, MANIFEST),
                lambda: tier.read(KEY, [page]),
                lambda: tier.write(key_of(9), [page]),
                lambda: list(tier.scan()),
                lambda: tier.remove(KEY),
                lambda: tier.reclaim(1 << 50),
                lambda: tier.reset(OTHER, "another model"),
                lambda: tier.write(KEY, [page]),
            ):
                with suppress(KvtierError):
                    act()
        finally:
            tier.close()


def command(base: Path, *words: str) -> None:
    """Run `kvtier check` on it: a verdict, or a refusal in words."""
    result = CliRunner().invoke(build(), ["check", str(base), *words])
    assert result.exception is None or isinstance(
        result.exception, KvtierError | OSError | SystemExit
    ), result.exception


@pytest.mark.parametrize("what", [use, lambda base: command(base), lambda base: command(base, "--fix")],
                         ids=["tier", "check", "check --fix"])  # fmt: skip
def test_nothing_of_others_is_touched(
    what: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("directory")

    @given(ENTRIES)
    @example([(OWN, "link to a directory", 0o600)])
    @example([(f"{OWN}/thesis.tex", "file", 0o600)])
    @example([(f"{OWN}/manifest.json", "huge", 0o600)])
    @examples(35)
    def check(entries: list[tuple[str, str, int]]) -> None:
        with scratch(home) as folder:
            base = folder / "kv"
            base.mkdir(mode=0o700)
            outside = outsiders(folder)
            made = []
            for name, kind, mode in entries:
                with suppress(OSError):
                    make(base / name, kind, mode, outside)
                    made.append((name, kind))
            before = picture(outside)
            lookalikes = [(name, (base / name).lstat()) for name, _ in made if not ours(name)]
            what(base)
            assert picture(outside) == before
            for name, seen in lookalikes:
                now = (base / name).lstat()
                assert (now.st_ino, now.st_mode, now.st_size) == (
                    (seen.st_ino, seen.st_mode, seen.st_size)
                ), name

    check()


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """A folder that goes whatever its modes are, and whoever sweeps in it still."""
    path = Path(tempfile.mkdtemp(dir=home))
    try:
        yield path
    finally:
        for found, folders, _ in os.walk(path):
            for name in folders:
                folder = os.path.join(found, name)
                with suppress(OSError):  # a sweep may be at work
                    if not os.path.islink(folder):
                        os.chmod(folder, 0o700)
        shutil.rmtree(path, ignore_errors=True)
