"""The I/O process dies, at any instant and in any way; everything is answered once and nothing is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.io_process.namespaces import Namespaces
from kvtier.types import OpKind, OpStatus, TierOp
from tests.io_process.rig import MANIFEST, Rig, file_tier, key_of, rewrite, rig
from tests.patience import HANG_S, until


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


@pytest.fixture
def io(tmp_path: Path, control: Path) -> Iterator[Rig]:
    wrapper = {"kind": "faulty", "options": {"control": str(control)}}
    with rig([file_tier(tmp_path / "kv", wrappers=[wrapper])]) as made:
        made.path = tmp_path / "kv"
        yield made
        rewrite(control, {})


def kill(io: Rig, number: signal.Signals = signal.SIGKILL) -> int:
    assert io.client.pid
    os.kill(io.client.pid, number)
    return io.client.pid


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_what_was_pending_is_answered_once_and_the_next_process_serves(
    io: Rig, control: Path
) -> None:
    io.fill(1)
    assert io.one(OpKind.WRITE, 1).status is OpStatus.OK
    rewrite(control, {"hang": True})
    ops = [io.op(OpKind.READ if i % 2 else OpKind.WRITE, i) for i in range(20)]
    io.submit_and_take(*ops)
    dead = kill(io)
    io.until(lambda: all(op.op in io.results for op in ops))
    assert {io.results[op.op].status for op in ops} == {OpStatus.DIED}
    assert not exists(dead)
    assert not io.client.alive
    late = io.one(OpKind.READ, 1)
    assert late.status is OpStatus.DIED
    rewrite(control, {})
    io.until(lambda: io.client.alive)
    assert io.client.pid != dead
    assert io.one(OpKind.READ, 1, slot=9).status is OpStatus.OK
    assert np.array_equal(io.arena.slot(9)[:20000], io.fill(1))
    assert len(io.scans) == 1, "what the brain knows is not told again"


def test_a_reset_while_there_is_no_process_waits_for_the_next(io: Rig) -> None:
    io.fill(1)
    io.one(OpKind.WRITE, 1)
    kill(io)
    io.until(lambda: not io.client.alive)
    reset = io.op(OpKind.RESET, text="next")
    io.submit(reset)
    io.until(lambda: reset.op in io.results)
    assert io.results[reset.op].status is OpStatus.OK
    assert io.one(OpKind.READ, 1).status is OpStatus.MISSING
    assert io.one(OpKind.RESET, text=MANIFEST).status is OpStatus.OK
    assert io.one(OpKind.READ, 1).status is OpStatus.MISSING


def test_a_reset_that_a_death_cut_short_is_done_by_the_next(io: Rig, tmp_path: Path) -> None:
    io.fill(1)
    io.one(OpKind.WRITE, 1)
    assert io.client.pid
    os.kill(io.client.pid, signal.SIGSTOP)
    reset = io.op(OpKind.RESET, text="next")
    io.submit(reset)
    kill(io)
    io.until(lambda: reset.op in io.results)
    assert io.results[reset.op].status is OpStatus.DIED
    io.until(lambda: io.client.alive)
    assert io.one(OpKind.READ, 1).status is OpStatus.MISSING
    io.client.close(HANG_S)
    with rig([file_tier(tmp_path / "kv")]) as again:
        assert [batch.keys for batch in again.scans] == [[]]


def test_a_reset_that_close_interrupts_is_done(io: Rig, tmp_path: Path) -> None:
    io.fill(1)
    io.one(OpKind.WRITE, 1)
    io.submit(io.op(OpKind.RESET, text="next"))
    io.client.close(HANG_S)
    with rig([file_tier(tmp_path / "kv")]) as again:
        assert [batch.keys for batch in again.scans] == [[]]


def test_killed_among_writes_and_reads_leaves_whole_records_only(io: Rig, tmp_path: Path) -> None:
    mine = len(os.listdir("/proc/self/fd"))
    chunks = {i: io.fill(i) for i in range(30)}
    rng = np.random.default_rng(0)
    for _ in range(4):
        io.until(lambda: io.client.alive)
        ops = [io.op(OpKind.WRITE, i) for i in chunks]
        ops += [io.op(OpKind.READ, i, slot=i + 30) for i in chunks]
        io.submit(*ops)
        seen = int(rng.integers(0, 30))
        io.until(lambda: io.client.pending <= 60 - seen)  # noqa: B023
        kill(io)
        io.until(lambda: not io.client.pending)
        assert len(os.listdir("/proc/self/fd")) == mine - 1  # the pipe of the dead one
    io.until(lambda: io.client.alive)
    io.one(OpKind.PROBE)  # waits for the OPEN before it
    assert not list(io.path.rglob("*.partial"))
    for i, chunk in chunks.items():
        result = io.one(OpKind.READ, i, slot=40)
        assert result.status in (OpStatus.OK, OpStatus.MISSING)
        if result.status is OpStatus.OK:
            assert np.array_equal(io.arena.slot(40)[:20000], chunk)


def test_sigterm_finishes_the_write_in_hand(io: Rig, control: Path) -> None:
    rewrite(control, {"hang": True})
    io.fill(1)
    io.running(OpKind.WRITE, 1)
    pid = kill(io, signal.SIGTERM)
    rewrite(control, {"write_delay_s": 0.1})
    io.until(lambda: not exists(pid))
    assert (io.path.rglob(f"{key_of(1).hex()}.kvt")).__next__()
    io.until(lambda: io.client.alive)
    rewrite(control, {})
    assert io.one(OpKind.READ, 1).status is OpStatus.OK


def test_close_finishes_the_write_in_hand_and_answers_the_rest(io: Rig, control: Path) -> None:
    rewrite(control, {"hang": True})
    io.fill(1)
    ops = [io.running(OpKind.WRITE, 1), *[io.op(OpKind.WRITE, i) for i in range(2, 7)]]
    io.submit_and_take(*ops[1:])
    pid = io.client.pid
    assert pid
    rewrite(control, {})
    io.client.close(HANG_S)
    assert not exists(pid)
    io.until(lambda: all(op.op in io.results for op in ops))
    assert {io.results[op.op].status for op in ops} == {OpStatus.DIED}
    assert list(io.path.rglob(f"{key_of(1).hex()}.kvt"))
    assert not list(io.path.rglob("*.partial"))
    assert io.client.poll() == []
    io.client.close()


def test_close_kills_what_hangs(io: Rig, control: Path) -> None:
    rewrite(control, {"hang": True})
    io.running(OpKind.WRITE, 1)
    pid = io.client.pid
    assert pid
    io.client.close(0.05)
    assert not exists(pid)


def test_nonsense_on_the_pipe_ends_the_process_not_the_worker(io: Rig) -> None:
    assert io.client._child
    io.client._child.unsent += b"\xff" * 64
    io.client._child.send()
    io.until(lambda: not io.client.alive)
    io.until(lambda: io.client.alive)
    assert io.one(OpKind.PROBE).status is OpStatus.OK


def test_the_back_off_doubles(tmp_path: Path) -> None:
    now = [1000.0]
    with rig([file_tier(tmp_path)], clock=lambda: now[0]) as io:
        for seconds in (0.1, 0.2, 0.4, 0.8):
            kill(io)
            io.until(lambda: io.client.pid is None)
            now[0] += seconds - 0.01
            io.client.poll()
            assert io.client.pid is None
            now[0] += 0.01
            io.client.poll()
            assert io.client.pid
            io.until(lambda: io.client.alive)
        now[0] += 31  # it was well for a while
        kill(io)
        io.until(lambda: io.client.pid is None)
        now[0] += 0.1
        io.client.poll()
        assert io.client.pid
        io.until(lambda: io.client.alive)


WORKER = """
import sys, time
from pathlib import Path
from tests.io_process.rig import file_tier, rig
from kvtier.types import OpKind
with rig([file_tier(Path(sys.argv[1]))]) as io:
    for i in range(40):
        io.fill(i)
    print(io.client.pid, flush=True)
    while True:
        io.run(*[io.op(OpKind.WRITE, i) for i in range(40)])
"""


def test_a_killed_worker_takes_its_process_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd()
    ) as worker:
        assert worker.stdout
        pid = int(worker.stdout.readline())
        worker.kill()
    until(lambda: not exists(pid), "its I/O process leaves")
    assert not [name for name in os.listdir("/dev/shm") if "kvtier" in name]
    with rig([file_tier(tmp_path)]) as io:
        statuses = {r.status for r in io.run(*[io.op(OpKind.READ, i) for i in range(40)])}
    assert statuses <= {OpStatus.OK, OpStatus.MISSING}


def test_replay_tells_what_is_open_and_every_change_since() -> None:
    replay = Namespaces()
    first, second = TierOp(1, OpKind.OPEN, 1, text="a"), TierOp(2, OpKind.OPEN, 2, text="a")
    reset, last = TierOp(3, OpKind.RESET, 1, text="b"), TierOp(4, OpKind.RESET, 1, text="c")
    for op in (first, second, reset, last):
        replay.record(op, {3, 4})
    told = [(op.kind, op.tier, op.text, op.op in (3, 4)) for op in replay.ops({3, 4})]
    assert sorted(told, key=lambda t: t[1]) == [
        (OpKind.OPEN, 1, "a", False),
        (OpKind.RESET, 1, "b", True),
        (OpKind.RESET, 1, "c", True),
        (OpKind.OPEN, 2, "a", False),
    ]
    replay.acknowledge(3)
    assert [(op.kind, op.text) for op in replay.ops(()) if op.tier == 1] == [
        (OpKind.OPEN, "b"),
        (OpKind.RESET, "c"),
    ]
    answered = next(op.op for op in replay.ops(()) if op.text == "c")
    replay.acknowledge(answered)
    assert [(op.kind, op.text) for op in replay.ops(()) if op.tier == 1] == [(OpKind.OPEN, "c")]


def test_changes_that_fail_again_and_again_are_told_once() -> None:
    replay = Namespaces()
    replay.record(TierOp(1, OpKind.OPEN, 1, text="a"), {1})
    replay.acknowledge(1)
    for i in range(2, 1000):
        awaited = {i - 1, i} if i % 100 == 0 else {i}
        replay.record(TierOp(i, OpKind.RESET, 1, text=f"{i}"), awaited)
    assert [(op.kind, op.text) for op in replay.ops({999})] == [
        (OpKind.OPEN, "a"),
        (OpKind.RESET, "999"),
    ]
