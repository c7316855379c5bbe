"""The planner: every byte once, neighbours joined, nothing beyond a page or a chunk."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.transfer.engine import ChunkCopy
from kvtier.transfer.page_map import PageMap, PageRun, Runs, Work, cut, works

ZEROS = 1 << 40
Chunk = tuple[int | None, ...]


def layout(planes: list[PageRun], blocks_per_chunk: int) -> PageMap:
    return PageMap({0: planes}, blocks_per_chunk, ZEROS)


def rows(runs: Runs) -> list[tuple[int, int, int, int]]:
    return list(zip(*(column.tolist() for column in runs), strict=True))


def work(*chunks: Chunk) -> Work:
    return works([ChunkCopy(i, 0, blocks) for i, blocks in enumerate(chunks)])[0]


def test_pages_that_are_neighbours_at_both_ends_are_one_run() -> None:
    plan = layout([PageRun(1000, 16, 16), PageRun(9000, 32, 16)], 3)
    runs = plan.offload_runs(work((4, 5, 6)))
    dense = (1000 + 4 * 16, 0, 0, 48)
    padded = [(9000 + block * 32, 0, 48 + i * 16, 16) for i, block in enumerate((4, 5, 6))]
    assert rows(runs) == [dense, *padded]


@pytest.mark.parametrize("blocks", [(6, 5, 4), (4, 6, 8), (4, 4, 4)])
def test_pages_that_are_no_neighbours_stay_apart(blocks: Chunk) -> None:
    assert len(rows(layout([PageRun(0, 16, 16)], 3).offload_runs(work(blocks)))) == 3


def test_neighbours_of_two_chunks_stay_apart() -> None:
    runs = layout([PageRun(0, 16, 16)], 2).onload_runs(work((0, 1), (2, 3)))
    assert rows(runs) == [(0, 0, 0, 32), (32, 1, 0, 32)]


def test_where_there_is_no_block_zeroes_go_out_and_nothing_comes_in() -> None:
    plan = layout([PageRun(0, 16, 16)], 4)
    chunk = work((None, 0, 1, None))
    assert rows(plan.offload_runs(chunk)) == [
        (ZEROS, 0, 0, 16),
        (0, 0, 16, 32),
        (ZEROS, 0, 48, 16),
    ]
    assert rows(plan.onload_runs(chunk)) == [(0, 0, 16, 32)]
    assert plan.moved_nbytes(chunk) == 32


def test_zeroes_beside_a_page_are_not_joined_to_it() -> None:
    plan = PageMap({0: [PageRun(16, 16, 16)]}, 2, zeros=0)
    assert len(rows(plan.offload_runs(work((None, 0))))) == 2


def test_copies_are_sorted_by_group_and_keep_their_order() -> None:
    copies = [ChunkCopy(3, 1, (0,)), ChunkCopy(2, 0, (1,)), ChunkCopy(1, 1, (None,))]
    found = [(w.group, w.slots.tolist(), w.blocks.tolist()) for w in works(copies)]
    assert found == [(1, [3, 1], [[0], [-1]]), (0, [2], [[1]])]
    assert works([]) == []


def test_parts_are_the_whole_in_order() -> None:
    whole = work((0,), (1,), (2,), (3,), (4,))
    assert [part.slots.tolist() for part in whole.parts(2)] == [[0, 1], [2, 3], [4]]
    assert [part.blocks.ravel().tolist() for part in whole.parts(2)] == [[0, 1], [2, 3], [4]]


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 64))
def test_pieces_cover_each_run_and_no_more(sizes: list[int], limit: int) -> None:
    run, offset, nbytes = cut(np.array(sizes, np.uint64), limit)
    assert all(n <= limit for n in nbytes.tolist())
    for i, size in enumerate(sizes):
        mine = run == i
        starts, ends = offset[mine].tolist(), (offset[mine] + nbytes[mine]).tolist()
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == size


CHUNKS = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.none() | st.integers(0, 9), min_size=n, max_size=n).map(tuple),
        min_size=1,
        max_size=4,
    )
)
PLANES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1])),
    min_size=1,
    max_size=3,
)


@given(CHUNKS, PLANES)
def test_runs_move_the_same_bytes_as_page_by_page(
    chunks: list[Chunk], sizes: list[tuple[int, int]]
) -> None:
    planes = [PageRun(i * 10_000, stride, n) for i, (n, stride) in enumerate(sizes)]
    plan, whole = layout(planes, len(chunks[0])), work(*chunks)
    naive_out, naive_in = set(), set()
    for at, blocks in enumerate(chunks):
        offset = 0
        for plane in planes:
            for block in blocks:
                for byte in range(plane.nbytes):
                    if block is None:
                        naive_out.add((ZEROS + byte, at, offset + byte))
                    else:
                        source = plane.address + block * plane.stride + byte
                        naive_out.add((source, at, offset + byte))
                        naive_in.add((source, at, offset + byte))
                offset += plane.nbytes
    assert offset == plan.chunk_nbytes(0)
    assert bytes_of(plan.offload_runs(whole)) == naive_out
    assert bytes_of(plan.onload_runs(whole)) == naive_in
    assert plan.moved_nbytes(whole) == len(naive_in)
    onload = rows(plan.onload_runs(whole))
    assert plan.run_nbytes(whole) == len(naive_in) // max(1, len(onload))


def bytes_of(runs: Runs) -> set[tuple[int, int, int]]:
    out: set[tuple[int, int, int]] = set()
    for device, chunk, offset, n in rows(runs):
        moved = {(device + i, chunk, offset + i) for i in range(n)}
        assert not moved & out
        out |= moved
    return out
