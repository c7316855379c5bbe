"""Azure LLM inference CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`, lengths only."""

from datetime import datetime

from kvtier.trace.formats.base import Drawing, TraceFormat
from kvtier.trace.prefixes import PrefixModel
from kvtier.trace.trace import Row

_HEADING = b"TIMESTAMP,ContextTokens,GeneratedTokens"
_SECONDS = len("2023-11-16 18:15:46")


class AzureFormat(TraceFormat):
    """Times are dates; the first row is second 0. Prefixes are drawn by `PrefixModel`."""

    block_tokens = 64

    def __init__(self, drawing: Drawing) -> None:
        self._model = PrefixModel(drawing, self.block_tokens)
        self._start: datetime | None = None

    @classmethod
    def recognises(cls, line: bytes) -> bool:
        return line.strip().lower() == _HEADING.lower()

    def parse(self, line: bytes) -> Row | None:
        if self.recognises(line):
            return None
        date, context, generated = line.decode().strip().split(",")
        whole = datetime.fromisoformat(date[:_SECONDS])
        fraction = float("0" + date[_SECONDS:].split("+")[0]) if date[_SECONDS:] else 0.0
        self._start = self._start or whole
        at = (whole - self._start).total_seconds() + fraction
        return self._model.draw(at, int(context), int(generated))
