"""The transfers of one direction: in which order they start, and when one is over.

Demand starts when it is submitted. Prefetches start part by part, behind all demand and few at a time, so
that a demand never queues behind more than two parts of them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from kvtier.transfer.engine import ChunkCopy, Moved, Transfer, Urgency
from kvtier.transfer.paths import Mover
from kvtier.transfer.plan import Layout, Work, works
from kvtier.transfer.streams import COMPUTE, Mark, Streams

PREFETCH_PARTS = 2
"""Parts of prefetches on the device at a time."""
PREFETCH_NBYTES = 64 << 20
"""Bytes of a part, more where a chunk is larger."""


class Started(NamedTuple):
    """A part that the device was given, or some of it where there is an error."""

    end: Mark
    error: Exception | None


Start = Callable[[Callable[[], Started]], "Future[Started]"]
"""Calls what it is given, at once or on a thread that keeps the order."""


class StreamTransfer(Transfer):
    """Parts that wait for their start, and the parts under way."""

    def __init__(self, line: "Line", parts: Sequence[Work], nbytes: int, after: Mark) -> None:
        self._line = line
        self.waiting = deque(parts)
        self.started: deque[Future[Started]] = deque()
        self.after = after
        self._nbytes = nbytes
        self._submitted = line.clock()
        self._ended: float | None = None
        self._error: Exception | None = None

    def done(self) -> bool:
        self._line.pump()
        return self.over()

    def result(self) -> Moved:
        self._line.start_up_to(self)
        self.wait()
        assert self._ended is not None
        if self._error is not None:
            raise self._error
        return Moved(self._nbytes, self._ended - self._submitted)

    def wait(self) -> None:
        """Wait until nothing of it is under way; all of it has started."""
        while self.started:
            self._end(wait=True)
        self.over()

    def over(self) -> bool:
        """Whether nothing of it is under way and nothing will be; starts nothing."""
        while self.started and self.started[0].done() and self._end(wait=False):
            pass
        if self._ended is None and not self.started and not self.waiting:
            self._ended = self._line.clock()
        return self._ended is not None

    def _end(self, *, wait: bool) -> bool:
        """Take the oldest part off if it is over, or once it is; remember what went wrong."""
        error: Exception | None
        try:
            part = self.started[0].result()
            if wait:
                part.end.wait()
            elif not part.end.passed():
                return False
            error = part.error
        except Exception as exc:  # a device that fails says so at any call
            error = exc
        self.started.popleft()
        if error is not None:
            self._error = self._error or error
            self.waiting.clear()
        return True


class Line:
    """Called from the worker's main thread only; `start` may use another one."""

    def __init__(
        self,
        streams: Streams,
        layout: Layout,
        choose: Callable[[Work], Mover],
        start: Start,
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self._streams = streams
        self._stream = streams.open()
        self._layout = layout
        self._choose = choose
        self._start = start
        self._demands: deque[StreamTransfer] = deque()
        self._prefetches: deque[StreamTransfer] = deque()

    def submit(self, copies: Sequence[ChunkCopy], urgency: Urgency) -> StreamTransfer:
        """Take a transfer, ordered after what the device computes now: one mark, taken here, serves all of it."""
        after = self._streams.mark(COMPUTE)
        whole = works(copies)
        nbytes = sum(map(self._layout.moved_nbytes, whole))
        if urgency is Urgency.DEMAND:
            transfer = StreamTransfer(self, whole, nbytes, after)
            self._demands.append(transfer)
            self.start_up_to(transfer)
        else:
            parts = [part for work in whole for part in work.parts(self._chunks(work))]
            transfer = StreamTransfer(self, parts, nbytes, after)
            self._prefetches.append(transfer)
            self.pump()
        return transfer

    def pump(self) -> None:
        """Start what may start of the prefetches."""
        for queue in (self._demands, self._prefetches):
            while queue and queue[0].over():
                queue.popleft()
        under_way = sum(len(transfer.started) for transfer in self._prefetches)
        for transfer in self._prefetches:
            while not self._demands and transfer.waiting and under_way < PREFETCH_PARTS:
                self._start_part(transfer)
                under_way += 1

    def start_up_to(self, transfer: StreamTransfer) -> None:
        """Start all of a transfer, and of those before it that it must not overtake."""
        queue = self._prefetches if transfer in self._prefetches else [transfer]
        for each in queue:
            while each.waiting:
                self._start_part(each)
            if each is transfer:
                return

    def drain(self) -> None:
        """Start and wait for everything; what fails is told to whoever asks for its result."""
        for transfer in (*self._demands, *self._prefetches):
            self.start_up_to(transfer)
            transfer.wait()

    def _start_part(self, transfer: StreamTransfer) -> None:
        part = transfer.waiting.popleft()
        transfer.started.append(self._start(partial(self._give, part, transfer.after)))

    def _give(self, part: Work, after: Mark) -> Started:
        error = None
        try:
            self._choose(part).move(part, self._stream, after)
        except Exception as exc:
            error = exc
        return Started(self._streams.mark(self._stream), error)

    def _chunks(self, work: Work) -> int:
        return max(1, PREFETCH_NBYTES // self._layout.chunk_nbytes(work.group))


def inline(part: Callable[[], Started]) -> "Future[Started]":
    """Start a part on the calling thread: of pinned memory that is a matter of microseconds."""
    future: Future[Started] = Future()
    try:
        future.set_result(part())
    except Exception as exc:
        future.set_exception(exc)
    return future
