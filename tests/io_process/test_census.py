"""Where memory is goes over the pipe when it has changed, and not more often than now and then."""

from typing import cast

from kvtier.io_process import wire
from kvtier.io_process.census import Census
from kvtier.io_process.records import Records
from kvtier.types import Placed
from tests.brain.fake_ranks import Clock


class Memory:
    """A tier that says what it is told to."""

    def __init__(self, *nodes: tuple[int, int]) -> None:
        self.nodes = list(nodes)

    def located(self) -> list[tuple[int, int]]:
        return self.nodes


def decoded(data: bytes) -> list[Placed]:
    buffer = wire.FrameBuffer()
    buffer.feed(data)
    return [placed for frame in buffer.frames() for placed in wire.PLACED.decode(frame.body)]


def test_it_tells_what_changed() -> None:
    clock, memory = Clock(), Memory((0, 4096), (2, 8192))
    census = Census(3, cast("list[Records]", [Memory(), memory]), clock)
    assert census.patience_s == 0
    assert decoded(census.news()) == [Placed(3, 2, 0, 4096), Placed(3, 2, 2, 8192)]
    memory.nodes = [(0, 1)]
    assert census.news() == b""  # too early
    assert 0 < census.patience_s <= 10
    clock.now += census.patience_s
    assert decoded(census.news()) == [Placed(3, 2, 0, 1)]
    clock.now += 10
    assert census.news() == b""  # nothing new
