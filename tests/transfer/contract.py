"""The contract of every transfer engine, as a test class to derive from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.engine import ChunkCopy, TransferEngine, Urgency, chunk_nbytes

BLOCKS = 24
POISON = 99

Groups = dict[int, list[torch.Tensor]]
Build = Callable[[Groups, int, int], tuple[TransferEngine, Arena]]
"""Makes an engine over groups of tensors, with so many blocks per chunk, and slots."""


def fill(tensor: torch.Tensor, value: int) -> None:
    """Stand for a computation."""
    tensor.fill_(value)


def pages(
    sizes: Sequence[int], pad: int = 0, blocks: int = BLOCKS, device: str = "cpu"
) -> list[torch.Tensor]:
    """Make one tensor per page size, rows `pad` bytes further apart than a page is long."""
    generator = torch.Generator().manual_seed(1)
    rows = [
        torch.randint(-128, 127, (blocks, n + pad), dtype=torch.int8, generator=generator)
        for n in sizes
    ]
    return [tensor.to(device)[:, :n] for tensor, n in zip(rows, sizes, strict=True)]


def expected(tensors: Sequence[torch.Tensor], blocks: Sequence[int | None]) -> list[int]:
    """Say what a slot holds of these blocks: per tensor its pages, zeroes where there is no block."""
    out: list[int] = []
    for tensor in tensors:
        for block in blocks:
            out += [0] * tensor.shape[1] if block is None else tensor[block].tolist()
    return out


class TransferContract(ABC):
    """Derive as `class TestMyEngine(TransferContract)` and say how to make one."""

    device = "cpu"

    @abstractmethod
    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        """Make the engine under test."""

    def compute(self, work: Callable[[], None]) -> None:
        """Do what the model does: on the stream that the engine's caller computes on."""
        work()

    @pytest.fixture
    def build(self) -> Iterator[Build]:
        """Make an engine and its arena; both are closed afterwards."""
        made: list[tuple[TransferEngine, Arena]] = []

        def build(
            groups: Groups, blocks_per_chunk: int, slots: int
        ) -> tuple[TransferEngine, Arena]:
            nbytes = max(chunk_nbytes(tensors, blocks_per_chunk) for tensors in groups.values())
            arena = Arena(slots, -(-nbytes // 4096) * 4096)
            for slot in range(slots):
                arena.slot(slot)[:] = POISON
            made.append((self.make(arena, groups, blocks_per_chunk), arena))
            return made[-1]

        yield build
        for engine, arena in made:
            engine.close()
            arena.close()

    @pytest.mark.parametrize(("pad", "blocks_per_chunk"), [(0, 1), (0, 3), (48, 3), (5, 2)])
    def test_what_comes_back_is_what_left(
        self,
        build: Build,
        pad: int,
        blocks_per_chunk: int,
    ) -> None:
        tensors = pages([512, 1031, 4096, 16], pad, device=self.device)
        before = [tensor.clone() for tensor in tensors]
        engine, arena = build({0: tensors}, blocks_per_chunk, 8)
        order = np.random.default_rng(pad).permutation(BLOCKS).tolist()
        copies = [
            ChunkCopy(7 - i, 0, tuple(order[i * blocks_per_chunk : (i + 1) * blocks_per_chunk]))
            for i in range(8)
        ]
        moved = engine.offload(copies).result()
        assert moved.nbytes == 8 * chunk_nbytes(tensors, blocks_per_chunk)
        for copy in copies:
            want = expected(before, copy.blocks)
            assert arena.slot(copy.slot).view(np.int8)[: len(want)].tolist() == want
            assert np.all(arena.slot(copy.slot)[len(want) :] == POISON)
        for tensor in tensors:
            tensor.fill_(POISON)
        assert engine.onload(copies).result().nbytes == moved.nbytes
        touched = sorted(block for copy in copies for block in copy.blocks if block is not None)
        others = [block for block in range(BLOCKS) if block not in touched]
        for tensor, original in zip(tensors, before, strict=True):
            assert torch.equal(tensor[touched], original[touched])
            assert torch.all(tensor[others] == POISON)

    def test_a_piece_without_a_block_is_zeroed_on_the_way_out_and_left_alone_on_the_way_in(
        self, build: Build
    ) -> None:
        tensors = pages([4096, 24], device=self.device)
        engine, arena = build({0: tensors}, 4, 1)
        blocks = (None, 5, 6, None)
        assert engine.offload([ChunkCopy(0, 0, blocks)]).result().nbytes == 2 * 4120
        want = expected(tensors, blocks)
        assert arena.slot(0).view(np.int8)[: len(want)].tolist() == want
        kept, held = tensors[0][2].clone(), tensors[0][5].clone()
        engine.onload([ChunkCopy(0, 0, (None, 3, None, None))]).result()
        assert torch.equal(tensors[0][2], kept)
        assert torch.equal(tensors[0][3], held)

    def test_a_chunk_without_any_block_moves_nothing(self, build: Build) -> None:
        engine, _ = build({0: pages([512], device=self.device)}, 2, 1)
        assert engine.onload([ChunkCopy(0, 0, (None, None))]).result().nbytes == 0
        assert engine.onload([]).result().nbytes == 0

    def test_groups_have_their_own_tensors(self, build: Build) -> None:
        full, window = pages([256], device=self.device), pages([1024], device=self.device)
        engine, arena = build({0: full, 1: window}, 1, 3)
        copies = [ChunkCopy(0, 0, (1,)), ChunkCopy(1, 1, (1,)), ChunkCopy(2, 0, (7,))]
        engine.offload(copies).result()
        for copy, tensors in zip(copies, (full, window, full), strict=True):
            want = expected(tensors, copy.blocks)
            assert arena.slot(copy.slot).view(np.int8)[: len(want)].tolist() == want

    @pytest.mark.parametrize("blocks_per_chunk", [1, 3])
    def test_several_at_once_are_as_one_by_one(self, build: Build, blocks_per_chunk: int) -> None:
        full, window = pages([256, 48], device=self.device), pages([1024], device=self.device)
        engine, arena = build({0: full, 1: window}, blocks_per_chunk, 7)
        order: list[int | None] = np.random.default_rng(0).permutation(BLOCKS).tolist()
        order[4] = None
        copies = [
            ChunkCopy(6 - i, i % 2, tuple(order[i * blocks_per_chunk :][:blocks_per_chunk]))
            for i in range(7)
        ]
        each = [copies[:1], copies[1:5], [], copies[5:]]
        transfers = [*engine.offload_each(each)]
        for transfer, mine in zip(transfers, each, strict=True):
            there = [copy.group for copy in mine for block in copy.blocks if block is not None]
            assert transfer.result().nbytes == sum((304, 1024)[group] for group in there)
        for copy in copies:
            want = expected((full, window)[copy.group], copy.blocks)
            assert arena.slot(copy.slot).view(np.int8)[: len(want)].tolist() == want

    def test_many_are_under_way_and_end_in_order(self, build: Build) -> None:
        tensors = pages([4096, 512], device=self.device)
        before = [tensor.clone() for tensor in tensors]
        engine, _ = build({0: tensors}, 1, BLOCKS)
        transfers = [engine.offload([ChunkCopy(i, 0, (i,))]) for i in range(BLOCKS)]
        while not transfers[-1].done():
            over = [transfer.done() for transfer in reversed(transfers)]
            assert over == sorted(over)
        for tensor in tensors:
            tensor.fill_(POISON)
        loads = [engine.onload([ChunkCopy(i, 0, (i,))]) for i in range(BLOCKS)]
        assert [load.result().nbytes for load in loads] == [4608] * BLOCKS
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    def test_a_prefetch_arrives_behind_demand(self, build: Build) -> None:
        tensors = pages([4096], device=self.device)
        before = tensors[0].clone()
        engine, _ = build({0: tensors}, 1, BLOCKS)
        engine.offload([ChunkCopy(i, 0, (i,)) for i in range(BLOCKS)]).result()
        tensors[0].fill_(POISON)
        late = [
            engine.onload([ChunkCopy(i, 0, (i,))], Urgency.PREFETCH) for i in range(BLOCKS // 2)
        ]
        engine.onload([ChunkCopy(i, 0, (i,)) for i in range(BLOCKS // 2, BLOCKS)]).result()
        assert torch.equal(tensors[0][BLOCKS // 2 :], before[BLOCKS // 2 :])
        while not late[-1].done():
            pass
        assert sum(transfer.result().nbytes for transfer in late) == BLOCKS // 2 * 4096
        assert torch.equal(tensors[0], before)

    def test_pages_are_read_after_the_computation_that_writes_them(self, build: Build) -> None:
        tensors = pages([4096], device=self.device)
        engine, arena = build({0: tensors}, BLOCKS, 1)
        for value in (41, 42, 43):
            self.compute(partial(fill, tensors[0], value - 1))
            self.compute(partial(fill, tensors[0], value))
            engine.offload([ChunkCopy(0, 0, tuple(range(BLOCKS)))]).result()
            self.compute(partial(fill, tensors[0], POISON))
            assert np.all(arena.slot(0) == value)

    def test_pages_are_written_after_the_computation_that_zeroes_them(self, build: Build) -> None:
        tensors = pages([4096], device=self.device)
        engine, arena = build({0: tensors}, BLOCKS, 1)
        for value in (41, 42, 43):
            arena.slot(0)[:] = value
            self.compute(partial(fill, tensors[0], 0))
            engine.onload([ChunkCopy(0, 0, tuple(range(BLOCKS)))]).result()
            assert torch.all(tensors[0] == value)

    def test_close_waits_for_what_runs(self, build: Build) -> None:
        tensors = pages([4096], device=self.device)
        engine, arena = build({0: tensors}, BLOCKS, 1)
        engine.offload([ChunkCopy(0, 0, tuple(range(BLOCKS)))])
        engine.close()
        want = expected(tensors, range(BLOCKS))
        assert arena.slot(0).view(np.int8)[: len(want)].tolist() == want
        engine.close()
