"""Mooncake JSONL: one chat service, 512-token blocks, ids global and prefix-chained."""

from typing import Annotated

import msgspec

from kvtier.trace.formats.base import Count, Drawing, TraceFormat, ids
from kvtier.trace.trace import Row


class _Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]  # ms
    input_length: Count
    output_length: Count
    hash_ids: list[int]


class MooncakeFormat(TraceFormat):
    """`{"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}`."""

    block_tokens = 512

    def __init__(self, drawing: Drawing) -> None:
        self._decoder = msgspec.json.Decoder(_Line)

    @classmethod
    def recognises(cls, line: bytes) -> bool:
        return b'"hash_ids"' in line and b'"chat_id"' not in line

    def parse(self, line: bytes) -> Row | None:
        row = self._decoder.decode(line)
        blocks = ids(row.hash_ids, row.input_length, self.block_tokens)
        return Row(row.timestamp / 1e3, row.input_length, row.output_length, blocks)
