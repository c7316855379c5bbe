"""Stages one after the other: what the first makes of a chunk is the second's chunk, and so on.

The payload begins with the stages that it went through, so that a record outlives every configuration.
"""

import struct

import msgspec

from kvtier import registry
from kvtier.codec import MARGIN, NO_FACTS, Bytes, ChunkFacts, Codec
from kvtier.codecs.scratch import Scratch
from kvtier.config import Plugin
from kvtier.config.codecs import MAX_STAGES
from kvtier.decoders import CODEC_NAMES, Decoders
from kvtier.errors import CorruptBlock

# offset  bytes  field
#      0      1  number of stages
#      1      6  of each, in the order of encoding: its id (2), the length of what it was given (4)
_STAGE = struct.Struct("<HI")

_NO_STAGES = (
    "pipeline",
    "budget",
)  # what decodes by other codecs: a payload could nest them without end


class PipelineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stages in the order of encoding; in a YAML they are simply a list."""

    stages: tuple[Plugin, ...] = ()


class PipelineCodec(Codec):
    """Pass a chunk through several codecs."""

    id = 3
    name = "pipeline"
    Config = PipelineConfig

    def __init__(self, config: PipelineConfig = PipelineConfig()) -> None:  # noqa: B008 - frozen
        self._stages = [registry.build("codec", stage) for stage in config.stages]
        self._decoders = Decoders(*self._stages)
        self._scratch = Scratch()
        self.lossy = any(stage.lossy for stage in self._stages)
        self.needs_layout = any(stage.needs_layout for stage in self._stages)
        self.shrinks = any(stage.shrinks for stage in self._stages)

    @property
    def label(self) -> str:
        return "+".join(stage.label for stage in self._stages)

    def objection(self, facts: ChunkFacts) -> str:
        return next(filter(None, (stage.objection(facts) for stage in self._stages)), "")

    def encode(self, chunk: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> int | None:
        if not self._stages:
            return None
        head = _head_nbytes(len(self._stages))
        out[0] = len(self._stages)
        given = chunk
        for i, stage in enumerate(self._stages):
            _STAGE.pack_into(out, 1 + i * _STAGE.size, stage.id, len(given))
            last = i == len(self._stages) - 1
            room = out[head:] if last else self._scratch.room(i % 2, len(given) + MARGIN)
            n = stage.encode(given, room, facts)
            if n is None:
                return self._settle(i, given, chunk, out)
            given = room[:n]
        return head + len(given)

    def _settle(self, stages: int, given: Bytes, chunk: Bytes, out: Bytes) -> int | None:
        """End with the stages before one that gained nothing, where they shrank the chunk by themselves."""
        head = _head_nbytes(stages)
        if not any(stage.shrinks for stage in self._stages[:stages]) or head + len(given) > len(
            out
        ):
            return None
        out[0] = stages
        out[head : head + len(given)] = given
        return head + len(given)

    def decode(self, buf: Bytes, out: Bytes, facts: ChunkFacts = NO_FACTS) -> None:
        stages = _read_head(buf, len(out))
        given = buf[_head_nbytes(len(stages)) :]
        for i, (codec_id, nbytes) in reversed(list(enumerate(stages))):
            room = self._scratch.room(i % 2, nbytes) if i else out
            self._decoders.of(codec_id).decode(given, room, facts)
            given = room


def _head_nbytes(stages: int) -> int:
    return 1 + _STAGE.size * stages


def _read_head(buf: Bytes, nbytes: int) -> list[tuple[int, int]]:
    """Return id and input length of each stage, none larger than a chunk of `nbytes` can be on its way."""
    n = int(buf[0]) if len(buf) else 0
    if not 1 <= n <= MAX_STAGES or len(buf) < _head_nbytes(n):
        raise CorruptBlock("not a pipeline's payload")
    stages = [_STAGE.unpack_from(buf, 1 + i * _STAGE.size) for i in range(n)]
    for codec_id, _ in stages:
        if (name := CODEC_NAMES.get(codec_id)) in _NO_STAGES:
            raise CorruptBlock(f"a {name} within a pipeline")
    if stages[0][1] != nbytes or any(given > nbytes + n * MARGIN for _, given in stages):
        raise CorruptBlock(f"a pipeline of {stages[0][1]} bytes for a chunk of {nbytes}")
    return stages
