"""Weka rows: coding-agent sessions, 64-token blocks as runs, ids local to a session."""

import msgspec

from kvtier.trace.formats.base import Count, Drawing, Positive, Seconds, TraceFormat
from kvtier.trace.trace import Row, check_tokens, expand

_LOCAL_BITS = 32


class _Line(msgspec.Struct, rename={"prompt": "in", "output": "out"}):
    s: str
    t: Seconds
    prompt: Count
    output: Count
    runs: list[tuple[Count, Positive]]
    a: str = ""
    think: Seconds | None = None  # null where requests of a session overlap


class WekaFormat(TraceFormat):
    """Sessions carry no wall-clock start: it is drawn, as a Poisson process of `session_rate`."""

    block_tokens = 64

    def __init__(self, drawing: Drawing) -> None:
        self._decoder = msgspec.json.Decoder(_Line)
        self._rng = drawing.rng()
        self._rate = drawing.session_rate
        self._now = 0.0
        self._starts: dict[str, tuple[int, float]] = {}

    @classmethod
    def recognises(cls, line: bytes) -> bool:
        return b'"runs"' in line and b'"think"' in line

    def parse(self, line: bytes) -> Row | None:
        row = self._decoder.decode(line)
        check_tokens(row.prompt)
        if any(first + n > 1 << _LOCAL_BITS for first, n in row.runs):
            raise ValueError(f"an id of more than {_LOCAL_BITS} bits")
        if sum(n for _, n in row.runs) > -(-row.prompt // self.block_tokens):
            raise ValueError(f"more blocks than {row.prompt} tokens have")
        if row.s not in self._starts:
            self._starts[row.s] = (len(self._starts), self._now)
            self._now += self._rng.expovariate(self._rate)
        session, start = self._starts[row.s]
        blocks = expand(row.runs) + (session << _LOCAL_BITS)
        return Row(start + row.t, row.prompt, row.output, blocks, session, row.think)
