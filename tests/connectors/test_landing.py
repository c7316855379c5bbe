"""A chunk that is coming is copied once, when its read was answered well; else its blocks are known to be lost."""

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm import landing
from kvtier.connectors.vllm.copy_job import CopyJob
from kvtier.connectors.vllm.landing import Landings
from kvtier.transfer.engine import ChunkCopy, Transfer
from kvtier.types import OpResult, OpStatus, ScanBatch
from tests.connectors.test_copy_job import Copy

COPIES = [ChunkCopy(i, 0, (10 * i, None, 10 * i + 1)) for i in range(4)]


class Device:
    """Takes copies, and the answers that the I/O process is to give."""

    def __init__(self) -> None:
        self.slots: list[list[int]] = []
        self.says: list[OpResult | ScanBatch] = []
        self.fails = False
        self.landings = Landings(self._poll, self._onload)

    def _poll(self) -> list[OpResult | ScanBatch]:
        said, self.says = self.says, []
        return said

    def _onload(self, copies: Sequence[ChunkCopy]) -> Transfer:
        if self.fails:
            raise OSError("no")
        self.slots.append([copy.slot for copy in copies])
        return Copy(1)

    def hear(self, *ops: int, status: OpStatus = OpStatus.OK) -> None:
        self.says = [OpResult(0, op, status) for op in ops]
        self.landings.hear()

    def begin(self, **reads: int) -> CopyJob:
        """Begin a job that waits for READs, by the position of each: `at2=7`."""
        job = CopyJob(4, (0, 1, 10, 11, 20, 21, 30, 31))
        told = {int(at[2:]): op for at, op in reads.items()}
        self.landings.begin(job, told, COPIES)
        return job


def test_chunks_are_copied_as_they_land_and_all_that_was_heard_is_reported() -> None:
    device = Device()
    job = device.begin(at1=5, at2=6, at3=7)
    scan: Any = ScanBatch(0, 1, 1, [], [], [], True)
    device.says = [OpResult(0, 6, OpStatus.OK), scan]
    device.landings.hear()
    assert device.slots == [[2]]
    assert not job.done()
    device.hear(5, 7, 8)
    assert device.slots == [[2], [1, 3]]
    assert [answer.op for answer in device.landings.take()] == [6, 1, 5, 7, 8]
    assert device.landings.take() == []
    for part in job.parts:
        part.transfer.result()
    assert job.done()
    assert not device.landings


def test_what_was_answered_before_the_load_came_is_remembered_for_a_while() -> None:
    device = Device()
    device.hear(5)
    device.hear(6, status=OpStatus.CORRUPT)
    job = device.begin(at1=5, at2=6)
    assert device.slots == [[1]]
    assert (job.failed, job.lost, job.coming) == ({2}, {20, 21}, {})
    for first in range(100, 100 + 4 * landing._REMEMBERED, 1000):
        device.hear(*range(first, first + 1000))
    assert len(device.landings._answers) + len(device.landings._older) < 3 * landing._REMEMBERED
    assert device.begin(at1=5).coming, "it was forgotten: the load has its time"


def test_when_its_time_is_over_a_load_waits_no_more() -> None:
    device = Device()
    job = device.begin(at0=5, at3=6)
    assert job.until == math.inf
    job.until = time.monotonic() - 1
    assert job.done()
    assert (job.failed, job.lost) == ({0, 3}, {0, 1, 30, 31})
    device.landings.forget(job)
    assert not device.landings
    device.hear(5, 6)
    assert device.slots == []


@pytest.mark.parametrize("end", [CopyJob.stop, CopyJob.wait])
def test_who_stops_it_or_waits_for_it_waits_for_no_read(end: Any) -> None:
    device = Device()
    job = device.begin(at0=5)
    end(job)
    assert job.done()
    device.hear(5)
    assert device.slots == []
    assert job.failed == {0}


def test_two_loads_may_wait_for_one_read() -> None:
    device = Device()
    first, second = device.begin(at1=5), device.begin(at2=5)
    first.give_up()
    device.landings.forget(first)
    device.hear(5)
    assert device.slots == [[2]]
    assert not second.coming


def test_a_copy_that_cannot_be_started_is_lost_and_said() -> None:
    device = Device()
    job = device.begin(at1=5, at2=6)
    device.fails = True
    with pytest.raises(OSError, match="no"):
        device.hear(5)
    assert (job.failed, job.lost) == ({1}, {10, 11})
