"""The best of several codecs that fits a time budget: strong ones while nobody waits, fast ones while reads do.

A read that waits is delayed by every chunk that a thread encodes before it gets to it.
"""

import struct
import threading
import time
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from kvtier import registry
from kvtier.codec import NO_FACTS, Bytes, ChunkFacts, Codec, CodecChoice
from kvtier.config import Plugin
from kvtier.decoders import Decoders
from kvtier.errors import CorruptBlock

_ID = struct.Struct("<H")  # what a payload begins with where no record header can say it
_WEIGHT = 0.2  # of the newest measurement in a moving average
_AGAIN = 64  # after so many chunks a codec that was passed over is measured again


class BudgetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the encoding of a chunk may take, times one and every read that waits; and the codecs."""

    budget_ms: Annotated[float, Meta(gt=0)] = 10.0
    among: tuple[Plugin, ...] = ()


@dataclass(slots=True)
class _Candidate:
    codec: Codec
    s_per_byte: float | None = None  # None: never measured
    share: float = 0.0  # stored bytes / original bytes
    passed_over: int = 0  # chunks since it was measured

    def measured(self, nbytes: int, stored_nbytes: int, seconds: float) -> None:
        speed, share = seconds / nbytes, stored_nbytes / nbytes
        if self.s_per_byte is None:
            self.s_per_byte, self.share = speed, share
        self.s_per_byte += _WEIGHT * (speed - self.s_per_byte)
        self.share += _WEIGHT * (share - self.share)
        self.passed_over = 0


class BudgetCodec(CodecChoice):
    """Choose among codecs for each chunk, by what each has cost and saved so far."""

    id = 6
    name = "budget"
    Config = BudgetConfig

    def __init__(self, config: BudgetConfig = BudgetConfig()) -> None:  # noqa: B008 - frozen
        self.among = [registry.build("codec", each) for each in config.among]
        self._candidates = [_Candidate(codec) for codec in self.among]
        self._decoders = Decoders(*self.among)
        self._budget_s = config.budget_ms / 1e3
        self._lock = threading.Lock()
        self.lossy = any(codec.lossy for codec in self.among)
        self.needs_layout = any(codec.needs_layout for codec in self.among)

    def objection(self, facts: ChunkFacts) -> str:
        return next(filter(None, (codec.objection(facts) for codec in self.among)), "")

    def chosen(self, nbytes: int, waiting: int) -> Codec:
        """Return the codec for the next chunk of `nbytes`, while so many reads wait for a thread."""
        with self._lock:
            best = self._best(nbytes, waiting)
            for each in self._candidates:
                each.passed_over += each is not best
            return best.codec

    def measured(self, codec: Codec, nbytes: int, stored_nbytes: int, seconds: float) -> None:
        """Take note of what the chosen codec made of a chunk."""
        with self._lock:
            for each in self._candidates:
                if each.codec is codec:
                    each.measured(nbytes, stored_nbytes, seconds)

    def encode_by_one(
        self, chunk: Bytes, out: Bytes, facts: ChunkFacts, waiting: int
    ) -> tuple[Codec, int | None]:
        codec = self.chosen(len(chunk), waiting)
        started = time.perf_counter()
        n = codec.encode(chunk, out, facts)
        seconds = time.perf_counter() - started
        self.measured(codec, len(chunk), len(chunk) if n is None else n, seconds)
        return codec, n

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        if not self.among or len(out) < _ID.size:
            return None
        codec = self.chosen(len(chunk), 0)
        _ID.pack_into(out, 0, codec.id)
        n = codec.encode(chunk, out[_ID.size :], facts)
        return None if n is None else n + _ID.size

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        codec_id = _ID.unpack_from(buf)[0] if len(buf) >= _ID.size else self.id
        if codec_id == self.id:
            raise CorruptBlock("a choice of codecs that says none")
        self._decoders.of(codec_id).decode(buf[_ID.size :], out, facts)

    def _best(self, nbytes: int, waiting: int) -> _Candidate:
        known = [each for each in self._candidates if each.s_per_byte is not None]
        if not waiting or not known:
            for each in self._candidates:
                if each.s_per_byte is None or each.passed_over >= _AGAIN:
                    return each
        limit = self._budget_s / (1 + waiting) / nbytes
        fitting = [each for each in known if (each.s_per_byte or 0.0) <= limit]
        if fitting:
            return min(fitting, key=lambda each: each.share)
        return min(known, key=lambda each: each.s_per_byte or 0.0)
