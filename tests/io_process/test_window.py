"""Reads that the process has no room for wait at the worker's end, and are answered there whatever happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.io_process import window
from kvtier.io_process.child import Child
from kvtier.io_process.window import Window
from kvtier.types import OpKind, OpStatus, Priority, TierOp
from tests.brain.fake_ranks import Clock
from tests.io_process.rig import Rig, file_tier, rewrite, rig


def reads(first: int, n: int, priority: Priority = Priority.DEMAND) -> list[TierOp]:
    ops = [TierOp(i, OpKind.READ, 1, priority=priority) for i in range(first, first + n)]
    return [op._replace(deadline_s=2.0) for op in ops]


def offered(ops: list[TierOp], depth: int = 4) -> tuple[Window, Clock]:
    clock = Clock()
    made = Window(depth, clock)
    made.size = depth
    for op in ops:
        made.offer(op)
    return made, clock


def numbers(ops: list[TierOp]) -> list[int]:
    return [op.op for op in ops]


def test_reads_are_handed_over_as_others_are_answered() -> None:
    made, clock = offered(reads(0, 6))
    assert numbers(made.take()) == [0, 1, 2, 3]
    assert not made.take()
    clock.now += 0.5
    made.ended(2)
    (op,) = made.take()
    assert op.op == 4
    for number in range(4):
        made.ended(number)
    assert numbers(made.take()) == [5]


def test_an_urgent_read_waits_for_none_that_is_not() -> None:
    made, _ = offered(reads(0, 6, Priority.PREFETCH))
    made.take()
    for op in reads(10, 5):
        made.offer(op)
    assert numbers(made.take()) == [10, 11, 12, 13]
    assert made.hasten(5, Priority.DEMAND), "it waits"
    assert not made.hasten(0, Priority.DEMAND), "the process has it"
    made.ended(10)
    assert not made.take(), "five urgent ones are handed over with it"
    made.ended(11)
    assert numbers(made.take()) == [14]


def test_the_window_grows_with_what_is_answered_in_a_step_and_shrinks_when_reads_are_late() -> None:
    made, clock = offered(reads(0, 200))
    sizes = []
    for _ in range(5):
        for op in made.take():
            made.ended(op.op)
        made.adjust()
        sizes.append(made.size)
    assert sizes == [8, 16, 32, 64, 128]
    made.adjust()
    assert made.size == 128, "nothing was answered"
    made.take()
    clock.now += 2.0
    made.adjust()
    assert made.size == 4


def test_what_waits_is_dropped_when_it_is_late() -> None:
    made, clock = offered(reads(0, 6))
    made.take()
    clock.now += 1.9
    assert made.late() == []
    clock.now += 0.2
    assert made.late() == [4, 5]
    assert not made.cancel(4)


def test_nothing_is_late_while_reads_are_answered() -> None:
    made, clock = offered(reads(0, 9))
    made.size = 5
    made.take()
    for number in range(3):
        clock.now += 1.9
        made.adjust()
        assert (made.late(), made.size) == ([], 5)
        made.ended(number)
        made.take()
    clock.now += 2.0
    made.adjust()
    assert (made.late(), made.size) == ([8], 4)


@pytest.fixture
def io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A process whose tier hangs, and whose window is its four threads."""
    monkeypatch.setattr(window, "_START", 1)
    control = tmp_path / "control.json"
    wrapper = {"kind": "faulty", "options": {"control": str(control)}}
    with rig([file_tier(tmp_path / "kv", wrappers=[wrapper])]) as made:
        rewrite(control, {"hang": True})
        yield made
        rewrite(control, {})
        made.until(lambda: not made.client.pending)


def test_what_was_never_handed_over_is_answered_at_once_when_the_process_is_given_up(
    io: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread in a dead disk keeps a process from ending, and its slots with it: only those."""
    gone = False
    monkeypatch.setattr(Child, "reaped", lambda child: gone and child._process.poll() is not None)
    ops = [io.op(OpKind.READ, i) for i in range(10)]
    io.submit_and_take(*ops)
    assert io.client._child
    io.client._child.broken = True
    io.until(lambda: len(io.results) == 8)  # OPEN and CANCEL among them
    assert {io.results[op.op].status for op in ops[4:]} == {OpStatus.DIED}
    assert not any(op.op in io.results for op in ops[:4])
    gone = True
    io.until(lambda: not io.client.pending)
    assert {io.results[op.op].status for op in ops[:4]} == {OpStatus.DIED}


def test_what_waits_is_cancelled_expires_and_does_not_outlive_a_reset(io: Rig) -> None:
    ops = [io.op(OpKind.READ, i) for i in range(8)]
    late = io.op(OpKind.READ, 9, deadline_s=0.1)
    io.submit_and_take(*ops, late)
    assert io.one(OpKind.CANCEL, target=ops[7].op).status is OpStatus.OK
    assert io.results[ops[7].op].status is OpStatus.CANCELLED
    io.until(lambda: late.op in io.results)
    assert io.results[late.op].status is OpStatus.DEADLINE
    io.submit(io.op(OpKind.RESET, text="next"))
    io.until(lambda: all(op.op in io.results for op in ops[4:]))
    assert {io.results[op.op].status for op in ops[4:]} == {OpStatus.CANCELLED}
