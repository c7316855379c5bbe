"""BurstGPT CSV: `Timestamp,Model,Request tokens,Response tokens,...`, lengths only."""

import csv

from kvtier.trace.formats.base import Drawing, TraceFormat
from kvtier.trace.prefixes import PrefixModel
from kvtier.trace.trace import Row

_COLUMNS = ("timestamp", "request tokens", "response tokens")


class BurstGptFormat(TraceFormat):
    """Times are seconds. A failed request (no response tokens) counts as malformed, as its authors say."""

    block_tokens = 64

    def __init__(self, drawing: Drawing) -> None:
        self._model = PrefixModel(drawing, self.block_tokens)
        self._columns: list[int] = []

    @classmethod
    def recognises(cls, line: bytes) -> bool:
        return set(_COLUMNS) <= set(_cells(line.lower()))

    def parse(self, line: bytes) -> Row | None:
        if not self._columns:
            heads = _cells(line.lower())
            self._columns = [heads.index(name) for name in _COLUMNS]
            return None
        cells = _cells(line)
        at, prompt, output = (float(cells[i]) for i in self._columns)
        if not output:
            raise ValueError("no response tokens: the request failed")
        return self._model.draw(at, int(prompt), int(output))


def _cells(line: bytes) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line.decode()]))]
