"""The contract on a real device, way by way, and what only a real device can get wrong."""
# mypy: disable-error-code="no-untyped-call"
# torch has no types for events, streams and sleeping.

import time
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer import line
from kvtier.transfer.cuda import find
from kvtier.transfer.engine import ChunkCopy, TransferEngine, Urgency, chunk_nbytes
from kvtier.transfer.hardware import Hardware
from kvtier.transfer.line import Share
from kvtier.transfer.paths import Path
from kvtier.transfer.stream_engine import StreamTransferEngine
from kvtier.transfer.streams import TorchStreams
from tests.transfer.contract import Groups, TransferContract, fill, pages

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
SLEEP_CYCLES = 400_000_000  # about a quarter of a second


@pytest.fixture(params=list(Path))
def path(request: pytest.FixtureRequest) -> Path:
    """A way that this machine has; without CuPy there is no kernel."""
    found: Path = request.param
    if found not in find(CUDA).paths(pinned=True):
        pytest.skip(f"{found}: not on this machine (CuPy?)")
    return found


class TestCuda(TransferContract):
    device = "cuda:0"

    @pytest.fixture(autouse=True)
    def _path(self, path: Path) -> None:
        self.path = path

    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        engine = StreamTransferEngine(arena, pages, blocks_per_chunk, find(CUDA), paths=[self.path])
        assert engine.paths == (self.path,)
        return engine


class TestNotPinned(TransferContract):
    device = "cuda:0"

    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        hardware: Hardware = find(CUDA)._replace(registrar=None)
        return StreamTransferEngine(arena, pages, blocks_per_chunk, hardware)


class TestWithoutDriver(TransferContract):
    device = "cuda:0"

    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        hardware: Hardware = find(CUDA)._replace(copier=None)
        return StreamTransferEngine(arena, pages, blocks_per_chunk, hardware)


def engine_of(
    path: Path, slots: int, layers: list[torch.Tensor], blocks_per_chunk: int
) -> tuple[StreamTransferEngine, Arena]:
    nbytes = -(-chunk_nbytes(layers, blocks_per_chunk) // 4096) * 4096
    arena = Arena(slots, nbytes)
    engine = StreamTransferEngine(arena, {0: layers}, blocks_per_chunk, find(CUDA), paths=[path])
    return engine, arena


def test_what_is_computed_after_the_submission_holds_nothing_up(path: Path) -> None:
    layers = pages([16384] * 4, blocks=256, device="cuda:0")
    engine, arena = engine_of(path, 16, layers, 16)
    copies = [ChunkCopy(i, 0, tuple(range(i * 16, i * 16 + 16))) for i in range(16)]
    for call in (engine.offload, engine.onload):
        call(copies).result()  # compiles and allocates
        torch.cuda.synchronize()
        transfer = call(copies)
        torch.cuda._sleep(SLEEP_CYCLES)
        computed = torch.cuda.Event()
        computed.record()
        transfer.result()
        assert not computed.query(), "the copy waited for what was computed after it"
        torch.cuda.synchronize()
    engine.close()
    arena.close()


def test_a_submission_behind_a_long_computation_returns_at_once(path: Path) -> None:
    layers = pages([16384] * 4, blocks=256, device="cuda:0")
    engine, arena = engine_of(path, 16, layers, 16)
    copies = [ChunkCopy(i, 0, tuple(range(i * 16, i * 16 + 16))) for i in range(16)]
    for half in (copies[:8], copies[8:]):  # compiles and allocates, in the sizes that follow
        engine.offload(half).result()
        engine.onload(half).result()
    torch.cuda._sleep(SLEEP_CYCLES)
    computed = torch.cuda.Event()
    computed.record()
    transfers = [engine.offload(copies[:8]), engine.onload(copies[8:])]
    assert not any(transfer.done() for transfer in transfers)
    assert not computed.query(), "the caller waited for the device"
    for transfer in transfers:
        transfer.result()
    assert computed.query()
    engine.close()
    arena.close()


def test_a_pass_that_is_launched_before_the_submission_holds_nothing_up(path: Path) -> None:
    layers = pages([16384] * 4, blocks=256, device="cuda:0")
    engine, arena = engine_of(path, 16, layers, 16)
    copies = [ChunkCopy(i, 0, tuple(range(i * 16, i * 16 + 16))) for i in range(16)]
    for half in (copies[:8], copies[8:]):
        for call in (engine.offload, engine.onload):
            call(half).result()  # compiles and allocates
    torch.cuda.synchronize()
    engine.launching()
    torch.cuda._sleep(SLEEP_CYCLES)
    computed = torch.cuda.Event()
    computed.record()
    transfers = [engine.offload(copies[:8]), engine.onload(copies[8:])]
    engine.launched()
    for transfer in transfers:
        transfer.result()
    assert not computed.query(), "the copies waited for the pass"
    late = engine.offload(copies[:8])
    late.result()
    assert computed.query()
    engine.close()
    arena.close()


def test_pages_may_be_overwritten_as_soon_as_a_transfer_is_done(path: Path) -> None:
    """A model writes on, on its own stream, while stores and loads of other blocks go on."""
    blocks, per_chunk = 512, 8
    layers = pages([4096, 20480], pad=512, blocks=blocks, device="cuda:0")
    chunks = blocks // per_chunk
    engine, arena = engine_of(path, chunks, layers, per_chunk)
    random = np.random.default_rng(5)
    for turn in range(20):
        order = random.permutation(blocks).reshape(chunks, per_chunk)
        copies = [ChunkCopy(i, 0, tuple(row.tolist())) for i, row in enumerate(order)]
        for layer in layers:
            layer.copy_(torch.randint_like(layer, -128, 127))
        before = [layer.clone() for layer in layers]
        stores = [engine.offload(copies[i : i + 4]) for i in range(0, chunks, 4)]
        for i, store in enumerate(stores):
            while not store.done():
                pass
            for layer in layers:
                layer[torch.from_numpy(order[4 * i : 4 * i + 4].ravel()).cuda()] = turn
        loads = [engine.onload(copies[i : i + 4]) for i in range(0, chunks, 4)]
        for load in loads:
            load.result()
        assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True)), turn
    engine.close()
    arena.close()


def test_what_is_more_than_may_be_under_way_arrives_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = pages([16384] * 4, blocks=256, device="cuda:0")
    before = [layer.clone() for layer in layers]
    engine, arena = engine_of(path, 64, layers, 4)
    monkeypatch.setitem(line.SHARES, Urgency.DEMAND, Share(3 * arena.slot_nbytes, 1 << 20))
    copies = [ChunkCopy(i, 0, tuple(range(4 * i, 4 * i + 4))) for i in range(64)]
    store = engine.offload(copies)
    while not store.done():
        pass
    for layer in layers:
        layer.fill_(99)
    load, later = engine.onload(copies[:63]), engine.onload(copies[63:])
    later.result()
    assert load.done()
    assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))
    engine.close()
    arena.close()


def test_its_streams_are_nobody_else_s() -> None:
    """Torch hands the same 32 of each priority to all who ask."""
    streams = find(CUDA).streams
    assert isinstance(streams, TorchStreams)
    numbers = [streams.open(urgent=urgent) for urgent in (False, True)]
    ours = {streams._streams[number].cuda_stream for number in numbers}
    theirs = {torch.cuda.Stream(priority=p).cuda_stream for _ in range(64) for p in (0, -1)}
    assert len(ours - theirs) == 2


def test_a_calling_stream_of_its_own(path: Path) -> None:
    """The order is against the stream that the caller computes on, whichever that is."""
    layers = pages([65536], blocks=64, device="cuda:0")
    engine, arena = engine_of(path, 1, layers, 64)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    for value, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP_CYCLES // 40)
            fill(layers[0], value)
            transfer = engine.offload([ChunkCopy(0, 0, tuple(range(64)))])
        transfer.result()
        assert np.all(arena.slot(0) == value)
    engine.close()
    arena.close()


def test_the_arena_is_pinned_and_given_back() -> None:
    layers = pages([65536], blocks=8, device="cuda:0")
    for _ in range(3):
        engine, arena = engine_of(Path.PLAIN, 64, layers, 8)
        assert engine._pinning.pinned
        assert torch.from_numpy(arena.slot(63)).is_pinned()
        engine.close()
        assert not torch.from_numpy(arena.slot(63)).is_pinned()
        arena.close()


def test_calibration_takes_less_than_two_seconds_and_is_kept(tmp_path: FilePath) -> None:
    layers = pages([65536], blocks=64, device="cuda:0")
    arena = Arena(64, 2 << 20)
    make = partial(StreamTransferEngine, arena, {0: layers}, 32, find(CUDA), cache=tmp_path)
    make().close()  # compiles
    for file in tmp_path.iterdir():
        file.unlink()
    started = time.monotonic()
    first = make()
    took = time.monotonic() - started
    assert took < 2, f"{took:.1f} s"
    first.close()  # two engines cannot pin one arena
    second = make()
    assert second.calibration is not None
    assert second.calibration == first.calibration
    second.close()
    arena.close()
