"""Chunks survive the way to a slot and back bit for bit, whatever the page map."""

import ctypes
import errno
import os
import threading

import numpy as np
import numpy.typing as npt
import pytest

from kvtier.memory.arena import Arena
from kvtier.transfer import cpu
from kvtier.transfer.cpu import CpuTransferEngine
from kvtier.transfer.engine import ChunkCopy, TransferEngine
from tests.patience import HANG_S
from tests.transfer.contract import BLOCKS, Groups, TransferContract, pages


class TestCpu(TransferContract):
    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        return CpuTransferEngine(arena, pages, blocks_per_chunk)


@pytest.fixture(params=["one call", "page by page"])
def _sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    if request.param == "page by page":
        monkeypatch.setattr(cpu._libc, "process_vm_readv", refuse)


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 1025, 3000])
def test_more_pieces_than_one_call_takes(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BATCH_NBYTES", 300 * 64)
    src = np.random.default_rng(n).integers(0, 255, (n, 64), np.uint8)
    dst = np.zeros_like(src)
    order = np.random.default_rng(n).permutation(n)
    cpu.copy_pieces(_pieces(src)[order], _pieces(dst))
    assert np.array_equal(dst, src[order])


def test_an_address_that_is_not_mapped_is_an_error() -> None:
    good = np.zeros((1, 64), np.uint8)
    with pytest.raises(OSError, match="copy of 2 pages"):
        cpu.copy_pieces(np.array([_pieces(good)[0], [4096, 64]], np.uint64), _pieces(good[[0, 0]]))


def test_a_caller_that_spins_does_not_starve_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it a thread waits long for the GIL: a copy needs it back once, not after every page."""
    calls: list[int] = []

    def copy_batch(src: cpu.Pieces, dst: cpu.Pieces) -> None:
        calls.append(len(src))
        one_call(src, dst)

    one_call = cpu._copy_batch
    monkeypatch.setattr(cpu, "_copy_batch", copy_batch)
    tensors = pages([4096] * 8)
    arena = Arena(BLOCKS, 8 * 4096)
    engine = CpuTransferEngine(arena, {0: tensors}, 1)
    transfers = [engine.offload([ChunkCopy(i, 0, (i,))]) for i in range(BLOCKS)]
    while not all(transfer.done() for transfer in transfers):
        os.sched_yield()  # lets go of the GIL for a moment, as an engine that spins does
    assert calls == [8] * BLOCKS
    engine.close()
    arena.close()


def _pieces(rows: npt.NDArray[np.uint8]) -> cpu.Pieces:
    at = rows.ctypes.data + np.arange(len(rows)) * rows.shape[1]
    return np.stack([at, np.full(len(rows), rows.shape[1])], axis=-1).astype(np.uint64)


def test_a_caller_rests_until_the_copy_is_over_or_its_time_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, one_call = threading.Event(), cpu._copy_batch

    def copy_batch(src: cpu.Pieces, dst: cpu.Pieces) -> None:
        held.wait(HANG_S)
        one_call(src, dst)

    monkeypatch.setattr(cpu, "_copy_batch", copy_batch)
    arena = Arena(1, 4096)
    engine = CpuTransferEngine(arena, {0: pages([4096])}, 1)
    transfer = engine.offload([ChunkCopy(0, 0, (0,))])
    transfer.rest(0.001)
    assert not transfer.done()
    held.set()
    transfer.rest(HANG_S)
    assert transfer.done()
    engine.close()
    arena.close()
