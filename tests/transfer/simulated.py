"""A device made of closures: streams run late and in any order that marks allow, and say what they were given."""

from collections import deque
from collections.abc import Callable
from ctypes import memmove
from random import Random
from threading import RLock
from typing import NamedTuple

import torch

from kvtier.transfer.hardware import Hardware
from kvtier.transfer.page_map import Addresses
from kvtier.transfer.paths import Copier, Direction
from kvtier.transfer.pinning import Registrar
from kvtier.transfer.streams import COMPUTE, Mark, Streams


class SimulatedMark(Mark):
    """Passes when its stream gets there."""

    def __init__(self, streams: "SimulatedStreams") -> None:
        self._streams = streams
        self.reached = False

    def passed(self) -> bool:
        self._streams.step(self._streams.random.randrange(3))
        return self.reached

    def wait(self) -> None:
        while not self.reached:
            assert self._streams.step(1), "every stream waits for another"


class SimulatedStreams(Streams):
    """Runs a step of a random stream now and then, as a device does that nobody waits for."""

    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self._lock = RLock()
        self.queues: list[deque[Callable[[], bool]]] = [deque()]

    def open(self, *, urgent: bool = False) -> int:
        self.queues.append(deque())
        return len(self.queues) - 1

    def mark(self, stream: int) -> SimulatedMark:
        mark = SimulatedMark(self)

        def reach() -> bool:
            mark.reached = True
            return True

        self.queues[stream].append(reach)
        return mark

    def after(self, stream: int, mark: Mark) -> None:
        assert isinstance(mark, SimulatedMark)
        self.queues[stream].append(lambda: mark.reached)

    def run(self, stream: int, work: Callable[[], None]) -> None:
        def once() -> bool:
            work()
            return True

        self.queues[stream].append(once)

    def compute(self, work: Callable[[], None]) -> None:
        """Give the engine's own stream something to do."""
        self.run(COMPUTE, work)

    def step(self, n: int) -> int:
        """Let streams take up to `n` steps; returns how many were possible."""
        for taken in range(n):
            with self._lock:
                if not self._step():
                    return taken
        return n

    def _step(self) -> bool:
        ready = [queue for queue in self.queues if queue]
        self.random.shuffle(ready)
        for queue in ready:
            if queue[0]():
                queue.popleft()
                return True
        return False


class ImmediateStreams(SimulatedStreams):
    """Starts work when it is given, as a real device does: what it cannot start is told to the giver."""

    def run(self, stream: int, work: Callable[[], None]) -> None:
        while self.step(1):
            pass
        work()


class Call(NamedTuple):
    """What the copier was asked for: by the copy engine in a direction, or by the kernel."""

    direction: Direction | None
    sizes: tuple[int, ...]


class RecordingCopier(Copier):
    """Copies between addresses of this process, and fails when it is told to."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.failing = False

    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses, direction: Direction) -> None:
        self._move(dst, src, nbytes, direction)

    def kernel(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        self._move(dst, src, nbytes, None)

    def _move(
        self, dst: Addresses, src: Addresses, nbytes: Addresses, direction: Direction | None
    ) -> None:
        if self.failing:
            raise OSError(700, "cuMemcpyBatchAsync: CUDA_ERROR_ILLEGAL_ADDRESS")
        self.calls.append(Call(direction, tuple(nbytes.tolist())))
        for to, from_, n in zip(dst.tolist(), src.tolist(), nbytes.tolist(), strict=True):
            memmove(to, from_, n)


class RecordingRegistrar(Registrar):
    """Pins nothing; remembers what is pinned, and refuses from the `limit`-th piece on."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.pieces: dict[int, int] = {}

    def register(self, address: int, nbytes: int) -> None:
        if address in self.pieces:
            raise OSError(712, "cuMemHostRegister_v2: CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED")
        if len(self.pieces) >= self.limit:
            raise OSError(2, "cuMemHostRegister_v2: CUDA_ERROR_OUT_OF_MEMORY")
        self.pieces[address] = nbytes

    def unregister(self, address: int) -> None:
        del self.pieces[address]


def hardware(
    streams: SimulatedStreams | None = None,
    *,
    copier: Copier | None = None,
    registrar: Registrar | None = None,
) -> Hardware:
    """Make a device that has everything."""
    return Hardware(
        "simulated",
        torch.device("cpu"),
        streams or SimulatedStreams(),
        copier or RecordingCopier(),
        True,
        registrar or RecordingRegistrar(),
        lambda: None,
    )
