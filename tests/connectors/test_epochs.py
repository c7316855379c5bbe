"""A reset outlives the engine, although no I/O process carries it out."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier.connectors.vllm import epochs as module
from kvtier.connectors.vllm.epochs import Epochs
from kvtier.tiers import epoch
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import Rig, file_tier, key_of, rig
from tests.patience import HANG_S, until


def manifest(name: str = "") -> str:
    return json.dumps({"model": "test", "epoch": name})


@contextmanager
def life(path: Path, open_now: bool = True) -> Iterator[tuple[Rig, Epochs]]:
    """One engine's life: what EngineCore keeps, and an I/O process."""
    with rig([file_tier(path)], open_now=False) as io:
        made = Epochs([path], manifest)
        if open_now:
            io.open(manifest(made.first()))
        yield io, made


def stopped(io: Rig) -> None:
    assert io.client.pid
    os.kill(io.client.pid, signal.SIGSTOP)
    io.submit(io.op(OpKind.RESET, text=manifest("later")))
    io.client.close(0.05)


def dead(io: Rig) -> None:
    """It is in its back-off when the reset comes, and when the worker leaves."""
    assert io.client.pid
    os.kill(io.client.pid, signal.SIGKILL)
    io.until(lambda: io.client.pid is None)
    io.submit(io.op(OpKind.RESET, text=manifest("later")))
    io.client.close(HANG_S)


def unsent(io: Rig) -> None:
    """There is no step after the reset, and all processes end at once."""
    assert io.client.pid
    os.kill(io.client.pid, signal.SIGKILL)
    io.client.close(HANG_S)


@pytest.mark.parametrize("die", [stopped, dead, unsent])
def test_a_reset_that_the_io_process_never_ran_outlives_the_engine(
    tmp_path: Path, die: Callable[[Rig], None]
) -> None:
    with life(tmp_path / "kv") as (io, epochs):
        io.fill(1)
        assert io.one(OpKind.WRITE, 1).status is OpStatus.OK
        epochs.end()
        die(io)
    assert list(tmp_path.rglob("*.kvt")), "nobody removed it"
    with life(tmp_path / "kv") as (io, _):
        assert [batch.keys for batch in io.scans] == [[]]
        assert io.one(OpKind.READ, 1).status is OpStatus.MISSING
        io.fill(2)
        assert io.one(OpKind.WRITE, 2).status is OpStatus.OK
    until(lambda: len(list(tmp_path.rglob("*.kvt"))) == 1, "what was written before is removed")
    with life(tmp_path / "kv") as (io, _):
        assert [batch.keys for batch in io.scans] == [[key_of(2)]], "later engines share an epoch"


def test_a_write_of_before_the_reset_that_comes_late_is_not_found_either(tmp_path: Path) -> None:
    with life(tmp_path / "kv") as (io, epochs):
        epochs.end()
        io.fill(1)
        assert io.one(OpKind.WRITE, 1).status is OpStatus.OK
        unsent(io)
    with life(tmp_path / "kv") as (io, _):
        assert [batch.keys for batch in io.scans] == [[]]


def test_a_reset_of_one_model_leaves_the_others_records(tmp_path: Path) -> None:
    with life(tmp_path / "kv") as (io, _):
        io.fill(1)
        assert io.one(OpKind.WRITE, 1).status is OpStatus.OK
    other = Epochs([tmp_path / "kv"], lambda: "another model")
    other.end()
    assert other.first() == ""  # read when it started
    assert len(Epochs([tmp_path / "kv"], lambda: "another model").first()) == 32
    with life(tmp_path / "kv") as (io, _):
        assert [batch.keys for batch in io.scans] == [[key_of(1)]]


def test_each_reset_renames_the_one_note(tmp_path: Path) -> None:
    made = Epochs([tmp_path], manifest)
    assert made.first() == ""
    seen = set()
    for _ in range(3):
        made.end()
        (note,) = tmp_path.iterdir()
        seen.add(note.name)
        assert note.stat().st_size == 0
        assert note.stat().st_mode & 0o777 == 0o600
    assert len(seen) == 3
    assert Epochs([tmp_path], manifest).first() == note.name[-32:]


def test_several_notes_are_obeyed_together_and_become_one(tmp_path: Path) -> None:
    namespace = "a" * 32
    for name in ("b", "c"):
        (tmp_path / f".epoch-{namespace}-{name * 32}").touch()
    (tmp_path / f".epoch-{namespace}-{'d' * 32}").mkdir()
    (tmp_path / f".epoch-{namespace}-{'e' * 32}").symlink_to("nowhere")
    assert epoch.notes(tmp_path) == [(namespace, "b" * 32), (namespace, "c" * 32)]
    epoch.note(tmp_path, namespace, "f" * 32)
    assert epoch.notes(tmp_path) == [(namespace, "f" * 32)]


def test_a_directory_that_does_not_answer_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_NOTE_S", 0.05)
    answers = threading.Event()
    real = epoch.note

    def hung(*args: object) -> None:
        answers.wait(HANG_S)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(epoch, "note", hung)
    made = Epochs([tmp_path], manifest)
    for _ in range(5):
        made.end()
    assert caplog.text.count("the file system does not answer") == 1
    assert sum(thread.name == "epoch" for thread in threading.enumerate()) == 1
    answers.set()
    until(lambda: list(tmp_path.iterdir()), "it is noted when the directory answers")
    until(lambda: "epoch" not in {t.name for t in threading.enumerate()}, "the thread ends")
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_noted_or_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    made = Epochs([tmp_path / "gone"], manifest)
    assert made.first() == ""
    made.end()
    made.end()
    assert caplog.text.count("gone: the reset is not noted yet (No such file or directory)") == 1
    (tmp_path / "file").touch()
    first = [Epochs([tmp_path / "file"], manifest).first() for _ in range(2)]
    assert "it cannot be read which epoch" in caplog.text
    assert first[0] != first[1], "nothing is found there"


def test_a_kill_right_after_the_reset_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path;"
        "from kvtier.connectors.vllm.epochs import Epochs;"
        "Epochs([Path(sys.argv[1])], lambda: 'm').end(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(Epochs([tmp_path], lambda: "m").first()) == 32
