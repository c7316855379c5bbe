"""In which order copies reach the device, what they wait for, and what a failure leaves behind."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtier.memory.arena import Arena
from kvtier.transfer import line, paths, plain
from kvtier.transfer.batch import Batch
from kvtier.transfer.engine import ChunkCopy, Moved, Transfer, Urgency
from kvtier.transfer.line import Share
from kvtier.transfer.page_map import Work
from kvtier.transfer.paths import Direction, Path
from kvtier.transfer.stream_engine import StreamTransferEngine
from tests.transfer.contract import BLOCKS, POISON, fill, pages
from tests.transfer.simulated import ImmediateStreams, RecordingCopier, SimulatedStreams, hardware

PAGE = 4096


class Rig(NamedTuple):
    """An engine with one page per chunk and one slot per block, and what it is made of."""

    engine: StreamTransferEngine
    arena: Arena
    page: torch.Tensor
    streams: SimulatedStreams
    copier: RecordingCopier

    def load(self, first: int, n: int, urgency: Urgency = Urgency.DEMAND) -> Transfer:
        return self.engine.onload(self.copies(first, n), urgency)

    def store(self, first: int, n: int) -> Transfer:
        return self.engine.offload(self.copies(first, n))

    def copies(self, first: int, n: int) -> list[ChunkCopy]:
        return [ChunkCopy(i, 0, (i,)) for i in range(first, first + n)]

    def queue(self, direction: Direction) -> deque[Callable[[], bool]]:
        return self.streams.queues[self.engine._lines[direction]._stream]

    def sizes(self) -> list[int]:
        return [len(call.sizes) for call in self.copier.calls]


Make = Callable[[Path], Rig]


@pytest.fixture
def make() -> Iterator[Make]:
    rigs: list[Rig] = []

    def build(path: Path) -> Rig:
        rigs.append(rig(path))
        return rigs[-1]

    yield build
    for each in rigs:
        each.engine.close()
        each.arena.close()


def rig(path: Path, seed: int = 3, streams: SimulatedStreams | None = None) -> Rig:
    streams, copier = streams or SimulatedStreams(seed), RecordingCopier()
    arena, page = Arena(BLOCKS, PAGE), pages([PAGE])[0]
    device = hardware(streams, copier=copier)
    return Rig(
        StreamTransferEngine(arena, {0: [page]}, 1, device, paths=[path]),
        arena,
        page,
        streams,
        copier,
    )


def test_demand_starts_when_it_is_submitted(make: Make) -> None:
    r = make(Path.BATCHED)
    for n in (3, 1, 2):
        r.load(0, n)
    r.streams.step(1000)
    assert r.sizes() == [3, 1, 2]


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(line.SHARES, Urgency.PREFETCH, Share(2 * PAGE, 4 * PAGE))


@pytest.mark.usefixtures("_small_parts")
def test_a_demand_waits_for_no_more_than_the_parts_under_way(make: Make) -> None:
    r = make(Path.BATCHED)
    early = r.load(0, 10, Urgency.PREFETCH)
    demand = r.load(10, 7)
    r.streams.step(1000)
    assert r.sizes() == [2, 2, 7]
    assert demand.done()
    while not early.done():
        pass
    assert r.sizes() == [2, 2, 7, 2, 2, 2]


@pytest.mark.usefixtures("_small_parts")
def test_a_prefetch_behind_demand_starts_once_that_is_over(make: Make) -> None:
    r = make(Path.BATCHED)
    demand = r.load(0, 7)
    late = r.load(7, 2, Urgency.PREFETCH)
    r.streams.step(1000)
    assert r.sizes() == [7]
    assert demand.done()
    assert late.result().nbytes == 2 * PAGE


@pytest.mark.usefixtures("_small_parts")
def test_who_waits_for_a_prefetch_starts_it_and_those_before_it(make: Make) -> None:
    r = make(Path.BATCHED)
    r.load(0, 8)
    first, second, third = (r.load(8 + 5 * i, 5, Urgency.PREFETCH) for i in range(3))
    assert second.result().nbytes == 5 * PAGE
    assert first.done()
    assert r.sizes() == [8, 2, 2, 1, 2, 2, 1]
    assert third.result().nbytes == 5 * PAGE


@pytest.mark.parametrize("path", [Path.BATCHED, Path.STAGED])
def test_a_large_demand_starts_part_by_part(
    monkeypatch: pytest.MonkeyPatch, make: Make, path: Path
) -> None:
    """Of 20 pages six are given to the device at once, the rest as those end; who comes later waits its turn."""
    monkeypatch.setitem(line.SHARES, Urgency.DEMAND, Share(3 * PAGE, 6 * PAGE))
    r = make(path)
    before = r.page.clone()
    stores = [r.store(0, 20), r.store(20, 4)]
    under_way = r.engine._lines[Direction.OFFLOAD].under_way
    assert under_way[Urgency.DEMAND] == 6 * PAGE
    while not stores[1].done():
        assert under_way[Urgency.DEMAND] <= 8 * PAGE
    assert stores[0].done()
    assert under_way[Urgency.DEMAND] == 0
    r.streams.compute(partial(fill, r.page, POISON))
    first, second = r.load(0, 20), r.load(20, 4)
    assert second.result().nbytes == 4 * PAGE  # starts all before it
    assert first.done()
    assert first.result().nbytes == 20 * PAGE
    assert torch.equal(r.page, before)


def test_nothing_more_is_started_of_what_nobody_wants(
    monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    monkeypatch.setitem(line.SHARES, Urgency.DEMAND, Share(2 * PAGE, 4 * PAGE))
    r = make(Path.BATCHED)
    unwanted, wanted = r.load(0, 10), r.load(10, 3)
    unwanted.stop()
    assert unwanted.result().nbytes == 4 * PAGE
    assert wanted.result().nbytes == 3 * PAGE
    assert r.sizes() == [2, 2, 2, 1]


def test_a_part_that_fails_ends_a_large_demand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(line.SHARES, Urgency.DEMAND, Share(2 * PAGE, 4 * PAGE))
    r = rig(Path.BATCHED, streams=ImmediateStreams(3))
    r.copier.failing = True
    bad = r.load(0, 10)
    r.copier.failing = False
    good = r.load(10, 2)
    while not good.done():
        pass
    with pytest.raises(OSError, match="ILLEGAL_ADDRESS"):
        bad.result()
    assert r.sizes() == [2]
    assert set(r.engine._lines[Direction.ONLOAD].under_way.values()) == {0}
    r.engine.close()
    r.arena.close()


def test_directions_do_not_wait_for_each_other(make: Make) -> None:
    r = make(Path.BATCHED)
    held = r.load(0, 4)
    r.queue(Direction.ONLOAD).appendleft(held_back)  # the stream of loads stands still
    assert r.store(4, 4).result().nbytes == 4 * PAGE
    assert not held.done()
    r.queue(Direction.ONLOAD).popleft()


def held_back() -> bool:
    return False


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("path", [Path.BATCHED, Path.STAGED, Path.KERNEL])
@pytest.mark.parametrize("urgency", list(Urgency))
def test_what_is_computed_later_holds_nothing_up(make: Make, path: Path, urgency: Urgency) -> None:
    r = make(path)
    store, load = r.store(0, 4), r.load(8, 6, urgency)
    r.streams.queues[0].append(held_back)  # a long forward pass
    assert store.result().nbytes == 4 * PAGE
    assert load.result().nbytes == 6 * PAGE
    r.streams.queues[0].popleft()


@pytest.mark.parametrize("path", list(Path))
def test_a_pass_that_is_launched_before_the_submission_holds_nothing_up(
    make: Make, path: Path
) -> None:
    """What the device was given before the launch is waited for; after it the order is that of submissions again."""
    r = make(path)
    r.streams.compute(partial(fill, r.page[:4], 7))
    r.engine.launching()
    r.streams.queues[0].append(held_back)  # a long forward pass
    store, load = r.store(0, 4), r.load(8, 6)
    r.engine.launched()
    late = r.store(4, 4)
    assert store.result().nbytes == 4 * PAGE
    assert load.result().nbytes == 6 * PAGE
    assert all((r.arena.slot(i) == 7).all() for i in range(4))
    r.streams.step(1000)
    assert not late.done()
    r.streams.queues[0].remove(held_back)
    assert late.result().nbytes == 4 * PAGE


@pytest.mark.parametrize("path", [Path.BATCHED, Path.KERNEL])
def test_the_device_starts_before_all_is_planned(
    monkeypatch: pytest.MonkeyPatch, make: Make, path: Path
) -> None:
    monkeypatch.setattr(paths, "CALL_NBYTES", 5 * PAGE)
    r = make(path)
    before = r.page.clone()
    assert r.store(0, BLOCKS).result().nbytes == BLOCKS * PAGE
    assert r.sizes() == [5, 5, 5, 5, 4]
    r.streams.compute(partial(fill, r.page, POISON))
    r.load(0, BLOCKS).result()
    assert torch.equal(r.page, before)


@pytest.mark.parametrize("path", [Path.STAGED, Path.PLAIN])
@pytest.mark.parametrize("stage_pages", [1, 3])
def test_more_than_the_buffers_hold(
    monkeypatch: pytest.MonkeyPatch, path: Path, stage_pages: int
) -> None:
    monkeypatch.setattr(paths, "STAGE_NBYTES", stage_pages * PAGE)
    monkeypatch.setattr(plain, "STAGE_NBYTES", stage_pages * PAGE)
    for seed in range(8):
        r = rig(path, seed)
        before = r.page.clone()
        stores = [r.store(0, 11), r.store(11, BLOCKS - 11)]
        for store in stores:
            store.result()
        r.streams.compute(partial(fill, r.page, POISON))
        for load in [r.load(0, 13), r.load(13, BLOCKS - 13)]:
            load.result()
        assert torch.equal(r.page, before)
        r.engine.close()
        r.arena.close()


def test_a_device_without_memory_for_staging_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*shape: object, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    arena, page = Arena(BLOCKS, PAGE), pages([PAGE])[0]
    engine = StreamTransferEngine(
        arena, {0: [page]}, 1, hardware(), paths=[Path.STAGED, Path.KERNEL]
    )
    assert "no memory for staging" in caplog.text
    assert engine.offload([ChunkCopy(0, 0, (3,))]).result().nbytes == PAGE
    engine.close()
    arena.close()


def test_a_staged_copy_is_one_large_copy_per_buffer(
    monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    monkeypatch.setattr(paths, "STAGE_NBYTES", 8 * PAGE)
    r = make(Path.STAGED)
    r.store(0, 16).result()
    engine = [call for call in r.copier.calls if call.direction is Direction.OFFLOAD]
    kernel = [call for call in r.copier.calls if call.direction is None]
    assert [len(call.sizes) for call in kernel] == [8, 8]
    assert [len(call.sizes) for call in engine] == [8, 8]


@pytest.mark.parametrize("path", [Path.BATCHED, Path.STAGED, Path.KERNEL])
def test_a_copy_that_the_driver_refuses_fails_alone(path: Path) -> None:
    r = rig(path, streams=ImmediateStreams(3))
    before = r.page.clone()
    r.store(0, BLOCKS).result()
    r.copier.failing = True
    bad = [r.load(0, 4), r.store(4, 4)]
    r.copier.failing = False
    good = r.load(8, 4)
    for transfer in bad:
        while not transfer.done():
            pass
        with pytest.raises(OSError, match="ILLEGAL_ADDRESS"):
            transfer.result()
    assert good.result().nbytes == 4 * PAGE
    assert torch.equal(r.page, before)
    r.engine.close()
    r.arena.close()


@pytest.mark.parametrize("path", [Path.BATCHED, Path.STAGED, Path.KERNEL])
def test_of_several_that_are_submitted_at_once_one_fails_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = rig(path, streams=ImmediateStreams(3))
    bad = r.arena.address + 3 * r.arena.slot_nbytes
    move = r.copier._move

    def refuse(dst: np.ndarray, *args: Any) -> None:
        if bad in dst.tolist():
            raise OSError(700, "cuMemcpyBatchAsync: CUDA_ERROR_ILLEGAL_ADDRESS")
        move(dst, *args)

    monkeypatch.setattr(r.copier, "_move", refuse)
    transfers = [*r.engine.offload_each([r.copies(i, 2) for i in (0, 2, 4)])]
    with pytest.raises(OSError, match="ILLEGAL_ADDRESS"):
        transfers[1].result()
    for i, transfer in ((0, transfers[0]), (4, transfers[2])):
        assert transfer.result().nbytes == 2 * PAGE
        assert bytes(r.arena.slot(i)[:PAGE]) == bytes(r.page[i].numpy())
    r.engine.close()
    r.arena.close()


def test_of_several_that_are_submitted_at_once_each_ends_on_its_own(make: Make) -> None:
    r = make(Path.BATCHED)
    transfers = [*r.engine.offload_each([r.copies(i, 1) for i in range(6)])]
    while not transfers[0].done():
        r.streams.step(1)
    assert not transfers[-1].done()
    assert transfers[2].result().nbytes == PAGE
    assert not transfers[-1].done(), "who waits for one waits for no one behind it"


def test_what_nobody_wants_any_more_of_several_is_not_started(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(line.SHARES, Urgency.DEMAND, Share(2 * PAGE, 2 * PAGE))
    r = make(Path.BATCHED)
    transfers = [*r.engine.offload_each([r.copies(i, 1) for i in range(4)])]
    transfers[2].stop()
    for transfer in transfers:
        transfer.result()
    assert r.sizes() == [1, 1, 1]


def test_where_several_cannot_be_planned_together_each_is_planned_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no plan")

    monkeypatch.setattr(Batch, "_plan", fail)
    r = make(Path.BATCHED)
    for transfer in r.engine.offload_each([r.copies(i, 1) for i in range(4)]):
        assert transfer.result().nbytes == PAGE
    assert caplog.text.count("not planned together") == 1


def test_many_at_once_are_planned_some_at_a_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []
    plan = Batch._plan

    def watch(self: Batch) -> list[list[Work]]:
        planned.append(len(self._transfers))
        return plan(self)

    monkeypatch.setattr(line, "_BATCH_PAGES", 3)
    monkeypatch.setattr(Batch, "_plan", watch)
    r = make(Path.BATCHED)
    for transfer in r.engine.offload_each([r.copies(i, 1) for i in range(8)]):
        transfer.result()
    assert planned == [3, 3, 2]


@pytest.mark.usefixtures("_small_parts")
def test_a_failed_transfer_is_over_only_when_the_device_is_through_with_it(make: Make) -> None:
    r = make(Path.BATCHED)
    load = r.load(0, 10, Urgency.PREFETCH)
    r.queue(Direction.ONLOAD).appendleft(held_back)
    chosen = r.engine._lines[Direction.ONLOAD]._choose

    def fail(_: object) -> paths.Mover:
        r.engine._lines[Direction.ONLOAD]._choose = chosen
        raise OSError(2, "CUDA_ERROR_OUT_OF_MEMORY")

    r.engine._lines[Direction.ONLOAD]._choose = fail
    assert not load.done()
    r.queue(Direction.ONLOAD).popleft()
    while not load.done():
        pass
    with pytest.raises(OSError, match="OUT_OF_MEMORY"):
        load.result()
    assert r.sizes() == [
        2,
        2,
        2,
    ]  # the third failed, the fourth was under way, the fifth never started


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["store", "load", "prefetch", "write", "look", "wait"]),
        st.integers(0, BLOCKS - 1),
        st.integers(1, 6),
    ),
    max_size=30,
)


@given(st.sampled_from(list(Path)), st.integers(0, 1000), STEPS)
def test_any_order_of_work_is_as_if_done_one_by_one(
    path: Path, seed: int, steps: list[tuple[str, int, int]]
) -> None:
    """A model holds what each page and slot must be; a block or slot in flight is used by nobody else."""
    r = rig(path, seed)
    page = {i: bytes(r.page[i].numpy().tobytes()) for i in range(BLOCKS)}
    slot = {i: bytes(PAGE) for i in range(BLOCKS)}
    flying: dict[int, Transfer] = {}
    for i, (kind, first, n) in enumerate(steps):
        blocks = range(first, min(BLOCKS, first + n))
        if kind in {"look", "wait"}:
            for transfer in set(flying.values()):
                if kind == "wait":
                    transfer.result()
                if transfer.done():
                    flying = {b: t for b, t in flying.items() if t is not transfer}
            continue
        if any(block in flying for block in blocks):
            continue
        if kind == "write":
            r.streams.compute(partial(fill, r.page[blocks[0] : blocks[-1] + 1], i))
            page.update((b, bytes([i]) * PAGE) for b in blocks)
            continue
        if kind == "store":
            transfer = r.store(first, len(blocks))
            slot.update((b, page[b]) for b in blocks)
        else:
            urgency = Urgency.PREFETCH if kind == "prefetch" else Urgency.DEMAND
            transfer = r.load(first, len(blocks), urgency)
            page.update((b, slot[b]) for b in blocks)
        flying.update(dict.fromkeys(blocks, transfer))
    r.engine.close()
    r.streams.step(10_000)
    assert {i: r.page[i].numpy().tobytes() for i in range(BLOCKS)} == page
    assert {i: r.arena.slot(i).tobytes() for i in range(BLOCKS)} == slot
    r.arena.close()


def test_moved_says_how_long_it_took_from_the_submission() -> None:
    times = iter(np.arange(0.0, 100.0).tolist())
    arena, page = Arena(1, PAGE), pages([PAGE])[0]
    engine = StreamTransferEngine(
        arena, {0: [page]}, 1, hardware(), paths=[Path.BATCHED], clock=lambda: next(times)
    )
    assert engine.offload([ChunkCopy(0, 0, (3,))]).result() == Moved(PAGE, 1.0)
    engine.close()
    arena.close()
