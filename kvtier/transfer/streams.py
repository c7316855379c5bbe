"""What a transfer engine needs of a device: streams that run work in order, and marks to order them by."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType

import torch

COMPUTE = 0
"""The stream that the engine computes on at the moment of the call."""


class Mark(ABC):
    """A point in a stream: it has passed once everything before it is over."""

    @abstractmethod
    def passed(self) -> bool:
        """Say whether it has; never blocks."""

    @abstractmethod
    def wait(self) -> None:
        """Block the calling thread until it has."""


class Streams(ABC):
    """Streams of one device, by number. A stream is used by one thread at a time."""

    @abstractmethod
    def open(self, *, urgent: bool = False) -> int:
        """Make a stream and return its number: of the lowest priority, or above what the engine computes on."""

    @abstractmethod
    def mark(self, stream: int) -> Mark:
        """Mark the end of what the stream was given so far."""

    @abstractmethod
    def after(self, stream: int, mark: Mark) -> None:
        """Keep what the stream is given from now on until the mark has passed; the caller goes on."""

    @abstractmethod
    def run(self, stream: int, work: Callable[[], None]) -> None:
        """Call `work`, which starts device work on the current stream, with that stream as the current one."""


class TorchMark(Mark):
    """An event of the device."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def passed(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call] # torch has no types for it

    def wait(self) -> None:
        self.event.synchronize()


MakeStream = Callable[[int], torch.cuda.Stream]
"""Makes a stream of a priority: 0 is the lowest, -1 above it."""


class TorchStreams(Streams):
    """The streams of any device for which torch has them.

    Torch's own are shared: 32 of each priority go round, so that one of them may be somebody else's too.
    """

    def __init__(self, device: torch.device, make: MakeStream | None = None) -> None:
        self._device = device
        self._torch: ModuleType = torch.get_device_module(device)
        self._make = make or self._shared
        self._streams: dict[int, torch.cuda.Stream] = {}

    def open(self, *, urgent: bool = False) -> int:
        number = len(self._streams) + 1
        self._streams[number] = self._make(-1 if urgent else 0)
        return number

    def mark(self, stream: int) -> Mark:
        event = self._torch.Event()
        event.record(self._stream(stream))
        return TorchMark(event)

    def after(self, stream: int, mark: Mark) -> None:
        assert isinstance(mark, TorchMark)
        self._stream(stream).wait_event(mark.event)

    def run(self, stream: int, work: Callable[[], None]) -> None:
        with self._torch.stream(self._stream(stream)):
            work()

    def _shared(self, priority: int) -> torch.cuda.Stream:
        stream: torch.cuda.Stream = self._torch.Stream(device=self._device, priority=priority)
        return stream

    def _stream(self, stream: int) -> torch.cuda.Stream:
        if stream != COMPUTE:
            return self._streams[stream]
        current: torch.cuda.Stream = self._torch.current_stream(self._device)
        return current
