"""Trace files on disk: plain, .gz or .zst; malformed rows are skipped, counted, and named."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

from kvtier import topology
from kvtier.errors import ConfigError, one_line, reason
from kvtier.registry import nearest
from kvtier.trace.formats import FORMATS, Drawing, TraceFormat
from kvtier.trace.trace import Row, Trace, TraceBuilder, check

_SHOWN = 10  # malformed rows that are remembered in words
_LONGEST = 16 << 20  # bytes of a line: a recorded prompt of 16 million tokens
_MALFORMED = (ValueError, OverflowError, IndexError, RecursionError, csv.Error)


@dataclass(slots=True)
class Skipped:
    """The malformed rows of one file."""

    count: int = 0
    rows: list[tuple[int, str]] = field(default_factory=list)  # line number from 1, what is wrong

    def add(self, number: int, why: str) -> None:
        """Count one; only the first few are kept in words."""
        self.count += 1
        if len(self.rows) < _SHOWN:
            self.rows.append((number, why))


class TraceFile:
    """One file; `rows` walks it in constant memory, `load` reads all of it."""

    def __init__(self, path: Path, name: str = "auto", drawing: Drawing | None = None) -> None:
        self.path = path
        self.skipped = Skipped()
        self.number = 0  # of the line that was read last
        self.format = _format(path, name, drawing or Drawing())

    def rows(self) -> Iterator[Row]:
        """Walk the requests in the file's order, once; a file that cannot be read is a ConfigError."""
        with open_lines(self.path) as lines:
            for number, line in enumerate(lines, 1):
                self.number = number
                if not line.strip():
                    continue
                try:
                    row = self._parse(line)
                except _MALFORMED as exc:
                    self.skipped.add(number, one_line(str(exc)))
                    continue
                if row is not None:
                    yield row

    def _parse(self, line: bytes) -> Row | None:
        if len(line) > _LONGEST:
            raise ValueError(f"more than {_LONGEST:,} bytes")
        row = self.format.parse(line)
        if row is not None:
            check(row)
        return row

    def load(self, chunk_tokens: int | None = None) -> Trace:
        """Read all of it, in chunks of so many tokens instead of the file's blocks.

        Raises:
            ConfigError: it has no request, or `chunk_tokens` is no multiple of its blocks.
        """
        builder: TraceBuilder | None = None
        room = topology.free_nbytes()
        for row in self.rows():
            builder = builder or self._builder(chunk_tokens)
            builder.add(row)
            if builder.nbytes > room:
                raise ConfigError(
                    f"{self.path}: line {self.number}: up to here it has {builder.references:,} references to "
                    f"blocks, more than this machine's memory holds; give a larger --chunk-tokens, or a part of it"
                )
        if builder is None:
            first = "".join(f"; line {number}: {why}" for number, why in self.skipped.rows[:1])
            raise ConfigError(f"{self.path}: there is no request in it{first}")
        return builder.build()

    def _builder(self, chunk_tokens: int | None) -> TraceBuilder:
        block = self.format.block_tokens
        if chunk_tokens is not None and chunk_tokens % block:
            raise ConfigError(
                f"{self.path}: its blocks are of {block} tokens; {chunk_tokens} is no multiple, use "
                f"{-(-chunk_tokens // block) * block}"
            )
        return TraceBuilder(block, chunk_tokens)


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """Open a file to read its lines, uncompressed; one that is not what its name says is a ConfigError."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: cannot be read: it is no file, and a trace is read twice")
    try:
        with (
            open_file(path, path.suffix, "rb") as raw,
            io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20) as file,
        ):
            yield _lines(cast(BinaryIO, file))
    except _broken(path) as exc:
        raise ConfigError(f"{path}: cannot be read: {reason(exc)}") from exc


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line; of one that is too long only so much that this shows."""
    while line := file.readline(_LONGEST + 1):
        yield line
        while len(line) > _LONGEST and not line.endswith(b"\n"):
            line = file.readline(_LONGEST + 1)


def open_file(path: Path, suffix: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    """Open a file that is compressed as its suffix says; .zst without zstandard is a ConfigError."""
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, mode, compresslevel=3))
    if suffix != ".zst":
        return path.open(mode)
    try:
        import zstandard
    except ModuleNotFoundError as exc:
        raise ConfigError(f"{path}: .zst needs pip install 'kvtier[zstd]'") from exc
    return cast(BinaryIO, zstandard.open(path, mode))


def _broken(path: Path) -> tuple[type[Exception], ...]:
    """List what a file raises that is not what its name says."""
    if path.suffix != ".zst":
        return (OSError, EOFError, zlib.error)
    import zstandard

    return (OSError, zstandard.ZstdError)


def _format(path: Path, name: str, drawing: Drawing) -> TraceFormat:
    if name != "auto":
        if name not in FORMATS:
            known = [*FORMATS, "auto"]
            raise ConfigError(
                f"--format {name!r} is not one of {', '.join(known)}{nearest(name, known)}"
            )
        return FORMATS[name](drawing)
    with open_lines(path) as lines:
        first = next(lines, b"")
    for make in FORMATS.values():
        with suppress(*_MALFORMED):
            if cast(type[TraceFormat], make).recognises(first):
                return make(drawing)
    raise ConfigError(f"{path}: its first line is of no known format; name it with --format")
