"""Which operation a free thread takes next."""

import math
import threading
from collections.abc import Sequence

import pytest

from kvtier.io_process.opqueue import Job, OpQueue
from kvtier.types import OpKind, Priority, TierOp
from tests.patience import HANG_S


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def queue(clock: Clock, threads: int = 4, depths: Sequence[int | None] = (None,)) -> OpQueue:
    return OpQueue(threads, depths, idle_bytes_per_s=1000, clock=clock)


def job(
    op: int,
    kind: OpKind = OpKind.READ,
    priority: Priority = Priority.DEMAND,
    tier: int = 1,
    deadline_s: float = math.inf,
) -> Job:
    return Job(TierOp(op, kind, tier, priority=priority, deadline_s=deadline_s), 0, nbytes=500)


def taken(q: OpQueue, n: int) -> list[int]:
    """Take `n` jobs, each done before the next."""
    ids = []
    for _ in range(n):
        got = q.take()
        assert got is not None
        ids.append(got.op.op)
        q.done(got)
    return ids


def nothing_runs(q: OpQueue) -> bool:
    return q._next() is None


def test_priority_then_order_of_receipt(clock: Clock) -> None:
    q = queue(clock, depths=(None, None))
    q.put(job(1, OpKind.WRITE, Priority.IDLE))
    q.put(job(2, OpKind.WRITE, Priority.WRITE))
    q.put(job(3, priority=Priority.PREFETCH))
    q.put(job(4))
    q.put(job(5, tier=2))
    q.put(job(6))
    assert taken(q, 6) == [4, 5, 6, 3, 2, 1]


def test_writes_never_take_every_thread(clock: Clock) -> None:
    q = queue(clock, threads=4)
    for i in range(4):
        q.put(job(i, OpKind.WRITE, Priority.DEMAND))
    assert [q.take(), q.take()]
    assert nothing_runs(q)
    q.put(job(9, priority=Priority.PREFETCH))
    got = q.take()
    assert got is not None
    assert got.op.op == 9


def test_one_tier_never_takes_every_thread(clock: Clock) -> None:
    q = queue(clock, threads=3, depths=(None, None))
    for i in range(5):
        q.put(job(i, tier=1))
    assert [q.take(), q.take()]
    assert nothing_runs(q)
    q.put(job(9, tier=2))
    got = q.take()
    assert got is not None
    assert got.op.op == 9


def test_a_tier_keeps_its_depth_and_some_of_it_for_reads(clock: Clock) -> None:
    q = queue(clock, threads=8, depths=(3, None))
    for i in range(4):
        q.put(job(i, OpKind.WRITE, Priority.DEMAND))
    assert [q.take(), q.take()]
    assert nothing_runs(q)  # of three places writes take two
    q.put(job(8))
    q.put(job(9))
    read = q.take()
    assert read is not None
    assert read.op.op == 8
    assert nothing_runs(q)
    q.put(job(10, tier=2))
    assert q.take() is not None
    q.done(read)
    assert q.take() is not None


def test_idle_writes_wait_until_all_else_is_done(clock: Clock) -> None:
    q = queue(clock)
    q.put(job(1))
    q.put(job(2, OpKind.WRITE, Priority.IDLE))
    running = q.take()
    assert running is not None
    assert nothing_runs(q)
    q.done(running)
    assert taken(q, 1) == [2]


def test_idle_writes_keep_their_rate(clock: Clock) -> None:
    q = queue(clock)
    for i in range(3):
        q.put(job(i, OpKind.WRITE, Priority.IDLE))
    assert taken(q, 1) == [0]
    assert nothing_runs(q)
    assert q._idle_wait() == 0.5
    clock.now += 0.5
    assert taken(q, 1) == [1]
    clock.now += 60  # a pause is not saved up
    assert taken(q, 1) == [2]
    q.put(job(3, OpKind.WRITE, Priority.IDLE))
    assert nothing_runs(q)


def test_cancel_takes_out_what_is_queued_only(clock: Clock) -> None:
    q = queue(clock)
    q.put(job(1))
    q.put(job(2))
    running = q.take()
    assert running is not None
    assert q.cancel(1) is None
    cancelled = q.cancel(2)
    assert cancelled is not None
    assert cancelled.op.op == 2
    assert nothing_runs(q)


def test_hasten_raises_and_never_lowers(clock: Clock) -> None:
    q = queue(clock)
    q.put(job(1, priority=Priority.PREFETCH))
    q.put(job(2, priority=Priority.PREFETCH))
    q.hasten(2, Priority.DEMAND)
    q.hasten(2, Priority.IDLE)
    q.hasten(77, Priority.DEMAND)
    assert taken(q, 2) == [2, 1]


def test_expire_takes_out_what_is_late(clock: Clock) -> None:
    q = queue(clock)
    q.put(job(1, deadline_s=1))
    q.put(job(2, deadline_s=2))
    assert q.expire() == []
    clock.now += 1
    assert [j.op.op for j in q.expire()] == [1]
    assert taken(q, 1) == [2]


def test_no_read_is_late_while_its_tier_reads(clock: Clock) -> None:
    q = queue(clock, depths=(None, None))
    for op in range(1, 5):
        q.put(job(op, deadline_s=2))
    q.put(job(9, deadline_s=2, tier=2))
    for op in range(1, 4):
        clock.now += 1.9
        assert taken(q, 1) == [op]
        assert [j.op.op for j in q.expire()] == ([9] if op == 2 else []), "its own tier's, that is"
    clock.now += 2
    assert [j.op.op for j in q.expire()] == [4]


def test_a_held_tier_waits_for_its_own_epoch(clock: Clock) -> None:
    q = queue(clock, depths=(None, None))
    q.hold(1, epoch=1)
    q.hold(1, epoch=2)
    q.put(job(1))
    q.put(job(2, tier=2))
    assert taken(q, 1) == [2]
    q.release(1, epoch=1)
    assert nothing_runs(q)
    q.release(1, epoch=2)
    assert taken(q, 1) == [1]


def test_drop_takes_out_one_tier(clock: Clock) -> None:
    q = queue(clock, depths=(None, None))
    q.put(job(1))
    q.put(job(2, tier=2))
    assert [j.op.op for j in q.drop(1)] == [1]
    assert taken(q, 1) == [2]


def test_close_wakes_every_thread(clock: Clock) -> None:
    q = queue(clock)
    got: list[Job | None] = []
    threads = [threading.Thread(target=lambda: got.append(q.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    q.close()
    for thread in threads:
        thread.join(HANG_S)
    assert got == [None] * 3
    q.put(job(1))
    assert q.take() is None


def test_only_reads_that_a_request_waits_for_are_counted(clock: Clock) -> None:
    q = queue(clock)
    q.put(job(1, OpKind.WRITE, Priority.WRITE))
    q.put(job(2, OpKind.READ, Priority.PREFETCH))
    assert q.reads == 0
    q.put(job(3))
    q.put(job(4))
    assert q.reads == 2
    assert taken(q, 1) == [3]
    assert q.reads == 1
    q.hasten(2, Priority.DEMAND)
    assert q.reads == 2
