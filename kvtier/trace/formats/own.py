"""kvtier's own JSONL: what a live engine records and what `kvtier trace synth` writes.

The first line is `{"kvtier_trace": 1, "block_tokens": n, "start_s": s}`; an engine that was restarted appends another
one. A row is `{"t": s, "in", "out"}` with either
`runs` ([[first id, count], ...]) or `keys` (16 hexadecimal digits per block, one string), and perhaps
`s` (session) and `think` (s).
"""

import msgspec
import numpy as np

from kvtier.trace.formats.base import Count, Drawing, Positive, Seconds, TraceFormat
from kvtier.trace.trace import MOST_TOKENS, NO_SESSION, Ids, Row, check_tokens, expand

VERSION = 1
KEY_DIGITS = 16


class Heading(msgspec.Struct):
    """The first line."""

    kvtier_trace: int
    block_tokens: Positive
    start_s: float = 0.0  # what the times count from


class TraceLine(
    msgspec.Struct, rename={"at_s": "t", "prompt": "in", "output": "out"}, omit_defaults=True
):
    """One request."""

    at_s: Seconds
    prompt: Count
    output: Count
    runs: list[tuple[Count, Positive]] | None = None
    keys: str | None = None
    s: int = NO_SESSION
    think: Seconds | None = None


class OwnFormat(TraceFormat):
    """Ids that were hashes keep 63 of their bits; the rest of a key told the KV-cache group."""

    def __init__(self, drawing: Drawing) -> None:
        self._decoder = msgspec.json.Decoder(TraceLine)
        self.block_tokens = 0
        self._start_s = 0.0

    @classmethod
    def recognises(cls, line: bytes) -> bool:
        return b'"kvtier_trace"' in line

    def parse(self, line: bytes) -> Row | None:
        if not self.block_tokens or self.recognises(line):
            self._head(line)
            return None
        row = self._decoder.decode(line)
        check_tokens(row.prompt)
        runs = row.runs or []
        n = sum(n for _, n in runs) if row.keys is None else len(row.keys) // KEY_DIGITS
        if n > -(-row.prompt // self.block_tokens):
            raise ValueError(f"{n} blocks for {row.prompt} tokens")
        blocks = expand(runs) if row.keys is None else _hashes(row.keys)
        return Row(row.at_s - self._start_s, row.prompt, row.output, blocks, row.s, row.think)

    def _head(self, line: bytes) -> None:
        heading = msgspec.json.decode(line, type=Heading)
        if heading.block_tokens > MOST_TOKENS:
            raise ValueError(f"blocks of {heading.block_tokens} tokens")
        if heading.kvtier_trace != VERSION:
            raise ValueError(f"version {heading.kvtier_trace} is not known, only {VERSION}")
        if self.block_tokens and heading.block_tokens != self.block_tokens:
            raise ValueError("recorded with another size of blocks from here on")
        if not self.block_tokens:
            self._start_s = heading.start_s
        self.block_tokens = heading.block_tokens


def _hashes(digits: str) -> Ids:
    if len(digits) % KEY_DIGITS:
        raise ValueError(f"keys: not {KEY_DIGITS} digits per block")
    unsigned = np.frombuffer(bytes.fromhex(digits), ">u8")
    return (unsigned >> np.uint64(1)).astype(np.int64)
