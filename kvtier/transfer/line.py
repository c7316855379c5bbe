"""The transfers of one direction: in which order they start, and when one is over.

Demand starts when it is submitted, up to so many bytes under way; the rest follows part by part, whenever
somebody asks whether a transfer is done, so that no submission takes long. Prefetches start behind all demand
and few at a time, so that a demand never queues behind more than two parts of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from kvtier.transfer.batch import Batch
from kvtier.transfer.engine import ChunkCopy, Moved, Transfer, Urgency
from kvtier.transfer.page_map import Listed, PageMap, Work, works
from kvtier.transfer.paths import Mover
from kvtier.transfer.streams import Mark, Streams


class Share(NamedTuple):
    """How the transfers of one urgency are cut, and how much of them the device is given at a time."""

    part_nbytes: int  # more where a chunk is larger
    under_way_nbytes: int


SHARES = {
    Urgency.DEMAND: Share(256 << 20, 1 << 30),  # 19 ms of PCIe 5.0 x16: a decode step or two
    Urgency.PREFETCH: Share(64 << 20, 128 << 20),
}


_BATCH_PAGES = 1 << 15  # planned at once: a millisecond


class Part(NamedTuple):
    """Chunks of a transfer that start together."""

    nbytes: int  # in their slots
    works: Callable[[], Sequence[Work]]  # asked for when it starts, once


class Started(NamedTuple):
    """A part that the device was given, or some of it where there is an error."""

    end: Mark
    nbytes: int
    error: Exception | None


Start = Callable[[Callable[[], Started]], "Future[Started]"]
"""Calls what it is given, at once or on a thread that keeps the order."""


class StreamTransfer(Transfer):
    """Parts that wait for their start, and the parts under way."""

    def __init__(self, line: "Line", urgency: Urgency, parts: Iterable[Part], after: Mark) -> None:
        self.urgency = urgency
        self.waiting = deque(parts)
        self.started: deque[tuple[Future[Started], int]] = deque()  # with the bytes of its chunks
        self.after = after
        self._line = line
        self._nbytes = 0
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

    def stop(self) -> None:
        self.waiting.clear()

    def wait(self) -> None:
        """Wait until nothing of it is under way; all of it has started."""
        while self.started:
            self._end(wait=True)
        self.over()

    def over(self) -> bool:
        """Whether nothing of it is under way and nothing will be; starts nothing."""
        while self.started and self.started[0][0].done() and self._end(wait=False):
            pass
        if self._ended is None and not self.started and not self.waiting:
            self._ended = self._line.clock()
        return self._ended is not None

    def _end(self, *, wait: bool) -> bool:
        """Take the oldest part off if it is over, or once it is; remember what went wrong."""
        error: Exception | None
        try:
            part = self.started[0][0].result()
            if wait:
                part.end.wait()
            elif not part.end.passed():
                return False
            self._nbytes += part.nbytes
            error = part.error
        except Exception as exc:  # a device that fails says so at any call
            error = exc
        self._line.under_way[self.urgency] -= self.started.popleft()[1]
        if error is not None:
            self._error = self._error or error
            self.waiting.clear()
        return True


class Line:
    """Called from the worker's main thread only; `start` may use another one."""

    def __init__(
        self,
        streams: Streams,
        layout: PageMap,
        choose: Callable[[Work], Mover],
        listed: Callable[[Work], Listed],
        start: Start,
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.under_way = dict.fromkeys(Urgency, 0)
        """Bytes of the chunks that the device was given and has not finished, as far as was seen."""
        self._streams = streams
        self._stream = streams.open()
        self._layout = layout
        self._choose = choose
        self._listed = listed
        self._start = start
        self._largest = max(map(layout.chunk_nbytes, layout.planes))
        self._queues: dict[Urgency, deque[StreamTransfer]] = {each: deque() for each in Urgency}
        self._waiting: dict[Urgency, deque[StreamTransfer]] = {each: deque() for each in Urgency}

    def submit(self, copies: Sequence[ChunkCopy], urgency: Urgency, after: Mark) -> StreamTransfer:
        """Take a transfer, all of it ordered after one mark."""
        transfer = self._queue(self._parts(copies, urgency), urgency, after)
        self.pump()
        return transfer

    def submit_each(
        self, transfers: Sequence[Sequence[ChunkCopy]], urgency: Urgency, after: Mark
    ) -> list[StreamTransfer]:
        """Take several transfers at once, in order, each as `submit` does; those of one part are planned together."""
        cut: list[list[Part]] = []
        small: list[Sequence[ChunkCopy]] = []
        pages = _BATCH_PAGES
        for copies in transfers:
            if len(copies) > self._chunks_per_part(urgency):
                cut.append(self._parts(copies, urgency))
                continue
            if pages >= _BATCH_PAGES:
                small, pages = [], 0
                batch = Batch(small, self._layout, self._listed)
            cut.append([Part(self._nbytes(copies), partial(batch.works, len(small)))])
            small.append(copies)
            pages += sum(self._layout.chunk_pages(copy.group) for copy in copies)
        submitted = [self._queue(parts, urgency, after) for parts in cut]
        self.pump()
        return submitted

    def pump(self) -> None:
        """Start what may start; called for every transfer of every step, so it looks at few."""
        for urgency, queue in self._queues.items():
            while queue and queue[0].over():
                queue.popleft()
            waiting = self._waiting[urgency]
            while waiting and self.under_way[urgency] < SHARES[urgency].under_way_nbytes:
                if waiting[0].waiting:
                    self._start_part(waiting[0])
                else:
                    waiting.popleft()
            if queue:
                return  # demand goes first

    def start_up_to(self, transfer: StreamTransfer) -> None:
        """Start all of a transfer, and of those before it that it must not overtake."""
        waiting = self._waiting[transfer.urgency]
        while transfer.waiting:
            if waiting[0].waiting:
                self._start_part(waiting[0])
            else:
                waiting.popleft()

    def drain(self) -> None:
        """Start and wait for everything; what fails is told to whoever asks for its result."""
        for transfer in [transfer for queue in self._queues.values() for transfer in queue]:
            self.start_up_to(transfer)
            transfer.wait()
        self.pump()  # forgets them

    def _queue(self, parts: Iterable[Part], urgency: Urgency, after: Mark) -> StreamTransfer:
        transfer = StreamTransfer(self, urgency, parts, after)
        self._queues[urgency].append(transfer)
        self._waiting[urgency].append(transfer)
        return transfer

    def _parts(self, copies: Sequence[ChunkCopy], urgency: Urgency) -> list[Part]:
        n = self._chunks_per_part(urgency)
        parts = [copies[i : i + n] for i in range(0, len(copies), n)]
        return [Part(self._nbytes(part), partial(works, part)) for part in parts]

    def _chunks_per_part(self, urgency: Urgency) -> int:
        return max(1, SHARES[urgency].part_nbytes // self._largest)

    def _nbytes(self, copies: Sequence[ChunkCopy]) -> int:
        return sum(self._layout.chunk_nbytes(copy.group) for copy in copies)

    def _start_part(self, transfer: StreamTransfer) -> None:
        part = transfer.waiting.popleft()
        self.under_way[transfer.urgency] += part.nbytes
        started = self._start(partial(self._give, part, transfer.after))
        transfer.started.append((started, part.nbytes))

    def _give(self, part: Part, after: Mark) -> Started:
        error, nbytes = None, 0
        try:
            for work in part.works():
                self._choose(work).move(work, self._stream, after)
                nbytes += self._layout.moved_nbytes(work)
        except Exception as exc:
            error = exc
        return Started(self._streams.mark(self._stream), nbytes, error)


def inline(part: Callable[[], Started]) -> "Future[Started]":
    """Start a part on the calling thread."""
    future: Future[Started] = Future()
    try:
        future.set_result(part())
    except Exception as exc:
        future.set_exception(exc)
    return future
