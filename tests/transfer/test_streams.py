"""Every way of the stream engine, on a device that runs late and in any order that its marks allow."""

from collections.abc import Callable

import pytest

from kvtier.arena import Arena
from kvtier.transfer.engine import TransferEngine
from kvtier.transfer.paths import Path
from kvtier.transfer.stream_engine import StreamTransferEngine
from tests.transfer.contract import Groups, TransferContract
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
