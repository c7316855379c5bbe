"""Chunks survive the way to a slot and back bit for bit, whatever the page map."""

import ctypes
import errno
import os

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kvtier.arena import Arena
from kvtier.transfer import cpu
from kvtier.transfer.cpu import CpuTransferEngine
from kvtier.transfer.engine import ChunkCopy, chunk_nbytes

BLOCKS = 12


def device(pages: list[int], pad: int = 0) -> list[torch.Tensor]:
    """Make one tensor per page size, rows `pad` bytes further apart than a page is long."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(-128, 127, (BLOCKS, n + pad), dtype=torch.int8, generator=generator)[:, :n]
        for n in pages
    ]


@pytest.mark.parametrize("pad", [0, 48])
@pytest.mark.parametrize("blocks_per_chunk", [1, 3])
def test_what_comes_back_is_what_left(pad: int, blocks_per_chunk: int) -> None:
    tensors = device([512, 1031, 4096], pad)
    before = [tensor.clone() for tensor in tensors]
    slot_nbytes = -(-chunk_nbytes(tensors, blocks_per_chunk) // 4096) * 4096
    arena = Arena(4, slot_nbytes)
    engine = CpuTransferEngine(arena, {0: tensors}, blocks_per_chunk)
    blocks = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(2)).tolist()
    copies = [
        ChunkCopy(3 - i, 0, tuple(blocks[i * blocks_per_chunk : (i + 1) * blocks_per_chunk]))
        for i in range(4)
    ]
    moved = engine.offload(copies).result()
    assert moved.nbytes == 4 * chunk_nbytes(tensors, blocks_per_chunk)
    for tensor in tensors:
        tensor.fill_(99)
    engine.onload(copies).result()
    touched = sorted(block for copy in copies for block in copy.blocks if block is not None)
    for tensor, original in zip(tensors, before, strict=True):
        assert torch.equal(tensor[touched], original[touched])
        others = [block for block in range(BLOCKS) if block not in touched]
        assert torch.all(tensor[others] == 99)
    engine.close()
    arena.close()


def test_a_piece_without_a_block_is_zeroed_on_the_way_out_and_left_alone_on_the_way_in() -> None:
    tensors = device([4096])
    arena = Arena(1, 8192)
    arena.slot(0)[:] = 77
    engine = CpuTransferEngine(arena, {0: tensors}, 2)
    engine.offload([ChunkCopy(0, 0, (None, 5))]).result()
    assert np.all(arena.slot(0)[:4096] == 0)
    assert np.array_equal(arena.slot(0)[4096:].view(np.int8), tensors[0][5].numpy())
    kept = tensors[0][2].clone()
    engine.onload([ChunkCopy(0, 0, (None, 3))]).result()
    assert torch.equal(tensors[0][2], kept)
    assert torch.equal(tensors[0][3], tensors[0][5])
    engine.close()
    arena.close()


def test_groups_have_their_own_tensors() -> None:
    full, window = device([256]), device([1024])
    arena = Arena(2, 4096)
    engine = CpuTransferEngine(arena, {0: full, 1: window}, 1)
    engine.offload([ChunkCopy(0, 0, (1,)), ChunkCopy(1, 1, (1,))]).result()
    assert np.array_equal(arena.slot(0)[:256].view(np.int8), full[0][1].numpy())
    assert np.array_equal(arena.slot(1)[:1024].view(np.int8), window[0][1].numpy())
    engine.close()
    arena.close()


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


def test_a_caller_that_spins_does_not_starve_the_copies() -> None:
    tensors = device([4096] * 8)
    arena = Arena(BLOCKS, 8 * 4096)
    engine = CpuTransferEngine(arena, {0: tensors}, 1)
    transfers = [engine.offload([ChunkCopy(i, 0, (i,))]) for i in range(BLOCKS)]
    looks = 0
    while not all(transfer.done() for transfer in transfers):
        os.sched_yield()  # lets go of the GIL for a moment, as an engine that spins does
        looks += 1
    assert looks < 10_000
    engine.close()
    arena.close()


def _pieces(rows: npt.NDArray[np.uint8]) -> cpu.Pieces:
    at = rows.ctypes.data + np.arange(len(rows)) * rows.shape[1]
    return np.stack([at, np.full(len(rows), rows.shape[1])], axis=-1).astype(np.uint64)
