"""Every way of the stream engine, on a device that runs late and in any order that its marks allow."""

import gc
import weakref
from collections.abc import Callable
from contextlib import closing

import pytest

from kvtier.memory.arena import Arena
from kvtier.transfer.engine import ChunkCopy, TransferEngine, Urgency
from kvtier.transfer.paths import Path
from kvtier.transfer.stream_engine import StreamTransferEngine
from tests.transfer.contract import Groups, TransferContract, pages
from tests.transfer.simulated import RecordingRegistrar, SimulatedStreams, hardware


class TestStreams(TransferContract):
    @pytest.fixture(autouse=True, params=list(Path))
    def _path(self, request: pytest.FixtureRequest) -> None:
        self.path = request.param
        self.streams = SimulatedStreams(7)

    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        device = hardware(self.streams)
        return StreamTransferEngine(arena, pages, blocks_per_chunk, device, paths=[self.path])

    def compute(self, work: Callable[[], None]) -> None:
        self.streams.compute(work)


class TestNotPinned(TestStreams):
    """The same with a thread per direction, because the arena could not be pinned."""

    @pytest.fixture(autouse=True, params=[None])
    def _path(self, request: pytest.FixtureRequest) -> None:
        self.registrar = RecordingRegistrar(limit=request.param)
        self.streams = SimulatedStreams(8)

    def make(self, arena: Arena, pages: Groups, blocks_per_chunk: int) -> TransferEngine:
        device = hardware(self.streams, registrar=RecordingRegistrar(limit=0))
        engine = StreamTransferEngine(arena, pages, blocks_per_chunk, device)
        assert engine.paths == (Path.PLAIN,)
        return engine


def test_an_engine_that_is_closed_gives_its_memory_back_at_once() -> None:
    with closing(Arena(8, 4096)) as arena:
        engine = StreamTransferEngine(arena, {0: pages([4096])}, 1, hardware(), paths=[Path.STAGED])
        engine.offload([ChunkCopy(0, 0, (0,))])
        engine.onload([ChunkCopy(1, 0, (1,))], Urgency.PREFETCH)
        engine.close()
        gone = weakref.ref(engine)
        gc.disable()
        try:
            del engine
            assert gone() is None
        finally:
            gc.enable()
