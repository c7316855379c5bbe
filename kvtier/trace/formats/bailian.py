"""Alibaba Bailian JSONL: chats with their parents, 16-token blocks."""

import msgspec

from kvtier.trace.formats.base import Count, Drawing, Seconds, TraceFormat, ids
from kvtier.trace.trace import Row

_NO_CHAT = -1


class _Line(msgspec.Struct):
    chat_id: int
    parent_chat_id: int
    timestamp: Seconds  # s
    input_length: Count
    output_length: Count
    hash_ids: list[int]


class BailianFormat(TraceFormat):
    """A chat whose `parent_chat_id` is known is a turn of its parent's session."""

    block_tokens = 16

    def __init__(self, drawing: Drawing) -> None:
        self._decoder = msgspec.json.Decoder(_Line)
        self._sessions: dict[int, int] = {}
        self._count = 0

    @classmethod
    def recognises(cls, line: bytes) -> bool:
        return b'"hash_ids"' in line and b'"chat_id"' in line

    def parse(self, line: bytes) -> Row | None:
        row = self._decoder.decode(line)
        blocks = ids(row.hash_ids, row.input_length, self.block_tokens)
        session = self._sessions.get(row.parent_chat_id, self._count)
        self._count += session == self._count
        if row.chat_id != _NO_CHAT:
            self._sessions[row.chat_id] = session
        return Row(row.timestamp, row.input_length, row.output_length, blocks, session)
