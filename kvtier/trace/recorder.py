"""Writes a live engine's own trace: hashes, lengths and times of its requests, no text.

The engine's thread only appends to a bounded queue; a thread of ours encodes and writes. What does not fit is
dropped and counted, and so is everything after the file fails.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from kvtier.config import TraceConfig
from kvtier.trace.formats.own import VERSION, Heading, TraceLine
from kvtier.trace.trace import NO_SESSION
from kvtier.types import BlockKey

logger = logging.getLogger(__name__)

_HASH = 8  # bytes of each key that are kept: two of a million blocks collide once in 10^7 traces
_LEAVE_S = 1.0


class _Entry(NamedTuple):
    at_s: float  # since the Unix epoch
    prompt_tokens: int
    output_tokens: int
    keys: tuple[BlockKey, ...]
    session: str | None


class Recorder:
    """`arrived` and `departed` come from the engine's thread and never wait or raise for the file's sake."""

    def __init__(
        self,
        config: TraceConfig,
        block_tokens: int,
        *,
        engine: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Append to the configured file; of several engines each has its own, `trace.dp1.jsonl` for `engine` 1."""
        self.dropped = 0  # requests
        self.written = 0
        path = Path(config.record)
        self._path = path if engine is None else path.with_suffix(f".dp{engine}{path.suffix}")
        self._clock = clock
        self._heading = Heading(VERSION, block_tokens, clock())
        self._alive: dict[str, _Entry] = {}
        self._queue: queue.Queue[_Entry | None] = queue.Queue(config.queue)
        self._encoder = msgspec.json.Encoder()
        self._thread = threading.Thread(target=self._write, name="kvtier-trace", daemon=True)
        self._thread.start()

    def arrived(
        self, request: str, keys: Sequence[BlockKey], prompt_tokens: int, session: str | None
    ) -> None:
        """Note a request with the chunks of its prompt."""
        self._alive[request] = _Entry(self._clock(), prompt_tokens, 0, tuple(keys), session)

    def departed(self, request: str, output_tokens: int) -> None:
        """Let a request that is over be written."""
        entry = self._alive.pop(request, None)
        if entry is None:
            return
        try:
            self._queue.put_nowait(entry._replace(output_tokens=output_tokens))
        except queue.Full:
            self._lost("the disk is too slow")

    def close(self) -> None:
        """Write what is queued, for a second at most."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_LEAVE_S)

    def _write(self) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(self._encoder.encode(self._heading) + b"\n")
                self._write_entries(file)
        except OSError as exc:
            self._lost(str(exc))
            while self._queue.get() is not None:
                self.dropped += 1

    def _write_entries(self, file: BinaryIO) -> None:
        while (entry := self._queue.get()) is not None:
            file.write(self._encoder.encode(_line(entry)) + b"\n")
            if self._queue.empty():
                file.flush()
            self.written += 1

    def _lost(self, why: str) -> None:
        self.dropped += 1
        if self.dropped == 1:
            logger.warning("kvtier: the trace %s loses requests: %s", self._path, why)


def _line(entry: _Entry) -> TraceLine:
    return TraceLine(
        at_s=entry.at_s,
        prompt=entry.prompt_tokens,
        output=entry.output_tokens,
        keys="".join(key[:_HASH].hex() for key in entry.keys),
        s=NO_SESSION if entry.session is None else _number(entry.session),
    )


def _number(session: str) -> int:
    digest = blake2b(session.encode(errors="replace"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1  # a positive 32-bit number
