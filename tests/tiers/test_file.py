"""The file tier: the contract of every tier, and what is a file system's own."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import kvtier.tiers.file as file_module
from kvtier.errors import ConfigError, TierError
from kvtier.io_process.record import FORMAT
from kvtier.testing.tiers import FIRST, SECOND, TierContract, pages
from kvtier.tier import Site
from kvtier.tiers import directory
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.types import PAGE
from tests.patience import HANG_S, until
from tests.tiers.medium import FileMedium

KEY = b"\xab" * 36


def sweeps() -> set[threading.Thread]:
    """Find the threads that remove trash, also those of other tests."""
    return {thread for thread in threading.enumerate() if thread.name == "sweep"}


class TestFileTier(FileMedium, TierContract):
    def test_lays_files_out_as_designed(self) -> None:
        tier = self.opened()
        tier.write(KEY, [pages(2)])
        name = KEY.hex()
        record = self.base / FIRST / "r0" / name[:2] / f"{name}.kvt"
        assert record.stat().st_size == 2 * PAGE
        assert json.loads((self.base / FIRST / "manifest.json").read_text()) == {"namespace": FIRST}
        for path in [self.base, *self.base.rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path

    def test_each_data_parallel_engine_has_its_level(self) -> None:
        tier = self.make(Site("kv", engine=3))
        tier.open(FIRST, "{}")
        tier.write(KEY, [pages(1)])
        assert len(list((self.base / "dp3" / FIRST / "r0").rglob("*.kvt"))) == 1

    def test_two_ranks_share_a_namespace(self) -> None:
        tiers = [self.opened(rank=rank) for rank in range(2)]
        for rank, tier in enumerate(tiers):
            tier.write(KEY, [pages(1, seed=rank)])
        tiers[0].reset(SECOND, "{}")
        assert tiers[0].read(KEY, [pages(1)]) == 0
        assert tiers[1].read(KEY, [pages(1)]) == PAGE
        tiers[1].reset(SECOND, "{}")
        assert not (self.base / FIRST).exists()

    def test_finds_a_record_that_appeared_behind_its_back(self) -> None:
        tier = self.opened()
        tier.write(KEY, [pages(1)])
        record = next(self.base.rglob("*.kvt"))
        other = record.with_name(f"{(KEY[:-1] + b'x').hex()}.kvt")
        other.write_bytes(record.read_bytes())
        assert {entry.key for entry in tier.scan()} == {KEY, KEY[:-1] + b"x"}
        record.unlink()
        assert tier.read(KEY, [pages(1)]) == 0

    def test_scan_ignores_what_is_no_record(self) -> None:
        tier = self.opened()
        tier.write(KEY, [pages(1)])
        shard = next(self.base.rglob("*.kvt")).parent
        (shard / "nonsense.kvt").write_text("")
        (shard / "abcd").write_text("")
        (shard / "abcd.txt").write_text("")
        assert [entry.key for entry in tier.scan()] == [KEY]

    def test_removes_what_a_crash_left(self) -> None:
        tier = self.opened()
        tier.close()
        (self.base / FIRST / "r0" / "partial" / "ab.partial").write_text("half a record")
        trash = self.base / ".trash-r0-1-1"
        (trash / "ab").mkdir(parents=True)
        (trash / "ab" / "x.kvt").write_text("")
        before = sweeps()
        again = self.opened()
        for thread in sweeps() - before:
            thread.join()
        assert list(again.scan()) == []
        assert not list(self.base.rglob("*.partial"))
        assert not trash.exists()

    def test_what_took_the_name_of_trash_meanwhile_stays(self) -> None:
        self.opened()
        fifo = self.base / ".trash-r0-1-1"
        os.mkfifo(fifo)
        directory.remove_tree(fifo)  # opened, it would wait for a writer for ever
        assert fifo.is_fifo()

    def test_what_is_being_removed_counts_until_it_is_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier, go = self.opened(), threading.Event()
        real = file_module._remove_trees

        def slow(*args: object) -> None:
            go.wait(HANG_S)
            real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(file_module, "_remove_trees", slow)
        tier.write(KEY, [pages(20)])
        before = sweeps()
        assert tier.reclaim(0) == 0
        tier.reset(SECOND, "{}")
        for _ in range(3):
            assert tier.reclaim(0) == 10 * PAGE, "this rank's share"
        assert len(sweeps() - before) == 1
        go.set()
        until(lambda: tier.reclaim(0) == 0, "the trash is gone")

    def test_says_who_holds_the_directory(self) -> None:
        self.opened()
        with pytest.raises(
            ConfigError, match=rf"{self.base} is in use .* pid {os.getpid()}.*stop it"
        ):
            self.make(Site("kv"))

    def test_a_directory_that_cannot_be_is_refused(self) -> None:
        self.base.write_text("a file")
        with pytest.raises(ConfigError, match="kv"):
            self.make(Site("kv"))

    def test_a_directory_removed_under_its_feet_is_an_error_until_opened_again(self) -> None:
        tier = self.opened()
        tier.write(KEY, [pages(1)])
        subprocess.run(["rm", "-rf", str(self.base / FIRST)], check=True)
        with pytest.raises(TierError, match="No such file"):
            tier.write(KEY, [pages(1)])
        assert tier.read(KEY, [pages(1)]) == 0
        tier.open(FIRST, "{}")
        tier.write(KEY, [pages(1)])
        assert tier.read(KEY, [pages(1)]) == PAGE

    def test_a_reset_after_a_failed_open_still_forgets(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier = self.opened()
        tier.write(KEY, [pages(1)])
        with monkeypatch.context() as patch:
            patch.setattr(file_module, "Root", self.broken_root)
            with pytest.raises(TierError):
                tier.open(FIRST, "{}")
        tier.reset(SECOND, "{}")
        tier.close()
        assert list(self.opened().scan()) == []

    @staticmethod
    def broken_root(*_: object) -> None:
        raise OSError(5, "no")

    def test_what_straddles_a_reset_lands_in_the_trash(self) -> None:
        tier = self.opened()
        before = tier._opened("test")
        tier.reset(SECOND, "{}")
        tier._root = before  # an operation that began before the reset
        with suppress(TierError):  # the trash may be gone already
            tier.write(KEY, [pages(1)])
        for namespace in (FIRST, SECOND):
            assert not list((self.base / namespace).rglob("*.kvt"))

    def test_a_directory_that_cannot_be_listed_hides_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier = self.opened()
        keys = [bytes([i]) * 36 for i in range(5)]
        for key in keys:
            tier.write(key, [pages(1)])
        real = os.open

        def broken(path: str, *rest: int, **more: int) -> int:
            if path == "02":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, *rest, **more)

        monkeypatch.setattr(os, "open", broken)
        entries = tier.scan()
        found = [next(entries).key for _ in range(4)]
        with pytest.raises(TierError, match=r"scan.*Input/output error"):
            next(entries)
        assert sorted(found) == [key for key in keys if key[0] != 2]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
    def test_a_write_that_fails_leaves_nothing(
        self, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier = self.opened()
        real = os.pwritev
        calls = 0

        def failing(fd: int, bufs: list[memoryview], offset: int) -> int:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise OSError(number, os.strerror(number))
            return real(fd, bufs[:1], offset)  # a short write first

        monkeypatch.setattr(os, "pwritev", failing)
        with pytest.raises(TierError, match=os.strerror(number)):
            tier.write(KEY, [pages(1), pages(1)])
        assert not list(self.base.rglob("*.partial"))
        assert not list(self.base.rglob("*.kvt"))

    def test_short_reads_and_writes_are_continued(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tier, record = self.opened(), pages(3, seed=1)
        writes, reads = os.pwritev, os.preadv
        monkeypatch.setattr(os, "pwritev", lambda fd, bufs, at: writes(fd, [bufs[0][:PAGE]], at))
        monkeypatch.setattr(os, "preadv", lambda fd, bufs, at: reads(fd, [bufs[0][:PAGE]], at))
        tier.write(KEY, [record[:PAGE], record[PAGE:]])
        out = pages(3)
        assert tier.read(KEY, [out]) == 3 * PAGE
        assert (out == record).all()


class TestForeign(FileMedium):
    """Namespaces of other models below the same path."""

    def test_counts_and_removes_oldest_first(self) -> None:
        for i, namespace in enumerate("abc"):
            tier = self.opened(namespace * 32)
            tier.write(KEY, [pages(4)])
            tier.close()
            os.utime(self.base / (namespace * 32) / "manifest.json", (i, i))
        tier = self.opened(FIRST)
        everything = sum(f.nbytes for f in directory.foreign(self.base, FIRST))
        assert everything >= 3 * 4 * PAGE
        assert tier.reclaim(0) == -(-everything // 2)  # one of two ranks
        left = tier.reclaim(1)
        assert sorted(p.name[0] for p in directory.namespaces(self.base)) == ["1", "b", "c"]
        assert left < everything // 2
        assert tier.reclaim(1 << 40) == 0

    def left_by(self, engine: int | None, namespace: str = FIRST) -> FileTier:
        tier = self.make(Site("kv", engine=engine))
        tier.open(namespace, "{}")
        tier.write(KEY, [pages(4)])
        return tier

    def records(self) -> set[str]:
        return {str(path.relative_to(self.base))[:5] for path in self.base.rglob("*.kvt")}

    def test_what_several_engines_left_counts_for_one_and_goes(self) -> None:
        for engine in range(3):
            self.left_by(engine).close()
        (self.base / "dp7").write_text("not a directory")
        (self.base / "dp0-old").mkdir()
        ((self.base / "dp0-old") / FIRST).mkdir()
        tier = self.left_by(None)
        assert 3 * 4 * PAGE <= tier.reclaim(0) < 4 * 4 * PAGE
        assert tier.reclaim(1 << 40) == 0
        assert self.records() == {FIRST[:5]}
        assert (self.base / "dp0-old" / FIRST).exists()

    def test_engines_spare_each_other_and_take_what_one_left(self) -> None:
        for engine in (None, 1):
            self.left_by(engine, SECOND).close()
        self.left_by(1).close()  # it may start again
        live = self.left_by(2, SECOND)
        tier = self.left_by(0)
        assert 2 * 4 * PAGE <= tier.reclaim(0) < 3 * 4 * PAGE
        assert tier.reclaim(1 << 40) == 0
        assert self.records() == {f"dp0/{FIRST[0]}", f"dp1/{FIRST[0]}", f"dp2/{SECOND[0]}"}
        live.close()

    def test_what_cannot_be_read_of_others_or_went_meanwhile_is_not_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier = self.left_by(0)
        self.left_by(1, SECOND).close()
        real = directory.foreign

        def denied(base: Path, own: str) -> list[directory.Foreign]:
            if base.name == "dp1":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(base, own)

        monkeypatch.setattr(directory, "foreign", denied)
        assert tier.reclaim(0) == 0
        monkeypatch.undo()
        shutil.rmtree(self.base / "dp1")
        assert tier.reclaim(0) == 0

    def test_spares_what_a_live_process_uses(self) -> None:
        self.opened(FIRST, rank=1).write(KEY, [pages(1)])
        tier = self.opened(SECOND, rank=0)
        assert tier.reclaim(1 << 40) > 0
        assert (self.base / FIRST).exists()

    def test_a_directory_with_the_name_of_a_namespace_is_not_one(self) -> None:
        """Web and build caches name their directories by MD5, too."""
        tier = self.opened()
        thesis = self.base / "d41d8cd98f00b204e9800998ecf8427e" / "thesis.tex"
        thesis.parent.mkdir()
        thesis.write_text("do not remove")
        assert tier.reclaim(1 << 40) == 0
        (thesis.parent / "manifest.json").write_text("{}")
        assert tier.reclaim(1 << 40) == 0
        assert thesis.exists()

    def test_older_formats_are_foreign_and_newer_ones_are_left_alone(self) -> None:
        tier = self.opened()
        manifests = {"1": '{"format": 1}', "2": f'{{"format": {FORMAT}}}', "3": '{"format'}
        newer = f'{{"format": {FORMAT + 1}}}'
        for name, manifest in (manifests | {"9": newer}).items():
            record = self.base / (name * 32) / "r0" / "ab" / f"{name}.kvt"
            record.parent.mkdir(parents=True)
            record.write_bytes(bytes(PAGE))
            (self.base / (name * 32) / "manifest.json").write_text(manifest)
        assert 0 < tier.reclaim(0) < 4 * PAGE
        assert tier.reclaim(1 << 40) == 0
        left = {path.name for path in self.base.iterdir() if path.is_dir()}
        assert left == {FIRST, "9" * 32}

    def before_a_reset(self) -> Path:
        """Leave a namespace that differs from the ones to come in its epoch alone."""
        tier = self.make(Site("kv"))
        tier.open(FIRST, '{"epoch": "1"}')
        tier.write(KEY, [pages(4)])
        tier.close()
        return self.base / FIRST

    def test_what_of_before_a_reset_cannot_be_removed_keeps_no_tier_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = self.before_a_reset()

        def full(path: Path, rank: int | None = None) -> Path:
            raise OSError(errno.ENOSPC, "a rename takes room here")

        with monkeypatch.context() as patched:
            patched.setattr(directory, "to_trash", full)
            tier = self.make(Site("kv"))
            tier.open(SECOND, '{"epoch": "2"}')
            assert tier.reclaim(0) >= 4 * PAGE, "it counts"
        tier.open(SECOND, '{"epoch": "2"}')
        assert not old.exists()

    def test_one_that_cannot_be_removed_protects_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for i, namespace in enumerate("ab"):
            self.left_by(None, namespace * 32).close()
            os.utime(self.base / (namespace * 32) / "manifest.json", (i, i))
        tier, real = self.opened(FIRST), directory.to_trash

        def ill(path: Path, rank: int | None = None) -> Path:
            if path.name[0] == "a":
                raise OSError(errno.EIO, "bad sector")
            return real(path, rank)

        monkeypatch.setattr(directory, "to_trash", ill)
        assert tier.reclaim(1 << 40) > 0
        assert sorted(p.name[0] for p in directory.namespaces(self.base)) == ["1", "a"]

    def test_what_cannot_be_listed_hides_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for namespace in "ab":
            self.left_by(None, namespace * 32).close()
        tier, real = self.opened(FIRST), os.scandir
        ill = self.base / ("a" * 32) / "r0"

        def broken(path: str | int | Path) -> object:
            if path == str(ill):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path)

        monkeypatch.setattr(os, "scandir", broken)
        assert tier.reclaim(0) >= 4 * PAGE // 2
        tier.reclaim(1 << 40)
        assert not list((self.base / ("b" * 32)).rglob("*.kvt"))

    @pytest.mark.parametrize("kind", ["fifo", "sparse"])
    def test_no_manifest_of_others_is_waited_for(self, kind: str) -> None:
        other = self.base / SECOND
        other.mkdir(parents=True, mode=0o700)
        if kind == "fifo":
            os.mkfifo(other / "manifest.json")
        else:
            (other / "manifest.json").touch()
            os.truncate(other / "manifest.json", 1 << 42)
        tier = self.make(Site("kv"))
        opening = threading.Thread(target=tier.open, args=(FIRST, '{"epoch": "1"}'), daemon=True)
        opening.start()
        opening.join(5.0)
        assert not opening.is_alive()
        assert tier.reclaim(0) >= 0, "it is open"

    def test_only_its_own_trash_is_swept(self) -> None:
        kept = [self.base / ".trash-me-not" / "x", self.base / "precious" / "y"]
        for path in kept:
            path.parent.mkdir(parents=True)
            path.write_text("do not remove")
        (self.base / ".trash-r0-1-1").symlink_to(self.base / "precious")
        gone = self.base / ".trash-r0-1-2"
        gone.mkdir()
        self.opened()
        until(lambda: not gone.exists(), "the trash is removed")
        assert all(path.exists() for path in kept)

    def test_links_are_not_followed(self) -> None:
        outside = self.base / "outside"
        outside.mkdir(parents=True)
        (outside / "bashrc").write_text("mine")
        (self.base / "r0.lock").symlink_to(outside / "bashrc")
        with pytest.raises(ConfigError):
            self.make(Site("kv"))
        (self.base / "r0.lock").unlink()
        namespace = self.base / FIRST
        namespace.mkdir()
        (namespace / "r0").symlink_to(outside)
        tier = self.make(Site("kv"))
        with pytest.raises(TierError):
            tier.open(FIRST, "{}")
        assert (outside / "bashrc").read_text() == "mine"
        tier.close()

    def test_what_is_no_file_is_no_record(self) -> None:
        tier = self.opened()
        shard = self.base / FIRST / "r0" / KEY.hex()[:2]
        shard.mkdir(exist_ok=True)
        os.mkfifo(shard / f"{KEY.hex()}.kvt")
        (shard / "aa.kvt").symlink_to("/etc/passwd")
        (shard / "bb.kvt").mkdir()
        assert tier.read(KEY, [pages(1)]) == 0
        assert list(tier.scan()) == []

    def test_never_touches_what_is_not_ours(self) -> None:
        tier = self.opened()
        (self.base / "precious").mkdir()
        (self.base / "precious" / "data").write_text("do not remove")
        (self.base / ("e" * 32)).symlink_to(self.base / "precious")
        tier.reclaim(1 << 40)
        assert (self.base / "precious" / "data").exists()


def test_a_lock_outlives_no_process(tmp_path: Path) -> None:
    script = (
        "import sys; from kvtier.tiers.file import *; from kvtier.tier import Site; "
        "t = FileTier(FileConfig(path=sys.argv[1]), Site('kv')); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=f"pid {holder.pid}"):
            FileTier(FileConfig(path=str(tmp_path)), Site("kv"), lock_timeout_s=0.1)
        holder.kill()
    FileTier(FileConfig(path=str(tmp_path)), Site("kv"), lock_timeout_s=1).close()
