"""A job of several transfers: done with the last, and a chunk fails with its own only."""

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.copy_job import CopyJob, CopyPart
from kvtier.transfer.engine import Moved, Transfer


class Copy(Transfer):
    """A transfer that ends when it is told to."""

    def __init__(self, nbytes: int, *, fails: bool = False) -> None:
        self.over = self.stopped = False
        self._nbytes = nbytes
        self._fails = fails

    def done(self) -> bool:
        return self.over

    def stop(self) -> None:
        self.stopped = True

    def result(self) -> Moved:
        self.over = True
        if self._fails:
            raise OSError("no")
        return Moved(self._nbytes, 1.0)


def test_it_is_done_with_its_last_transfer() -> None:
    first, second = Copy(10), Copy(20)
    job = CopyJob(3, parts=[CopyPart(first, [0, 1])])
    assert not job.done()
    first.over = True
    assert job.done()
    job.parts.append(CopyPart(second, [2]))
    assert not job.done()
    second.over = True
    assert job.done()
    assert job.result() == Moved(30, 1.0), "they ran side by side"
    assert job.failed == set()


def test_a_chunk_fails_with_its_own_transfer_only() -> None:
    job = CopyJob(4, blocks=(7, 8), failed={3})
    job.parts += [CopyPart(Copy(10), [0]), CopyPart(Copy(20, fails=True), [1, 2])]
    job.wait()
    assert job.done()
    assert job.result() == Moved(10, 1.0)
    assert job.failed == {1, 2, 3}


def test_without_a_transfer_it_is_over_and_may_fail_as_a_whole() -> None:
    job = CopyJob(2)
    assert job.done()
    job.fail()
    assert (job.result(), job.failed) == (Moved(0, 0.0), {0, 1})


def test_all_of_it_is_stopped() -> None:
    copies = [Copy(1), Copy(1)]
    CopyJob(2, parts=[CopyPart(copy, [i]) for i, copy in enumerate(copies)]).stop()
    assert all(copy.stopped for copy in copies)
