"""Trace files on disk: plain, .gz or .zst; malformed rows are skipped, counted, and named."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

from kvtier.errors import ConfigError
from kvtier.registry import nearest
from kvtier.trace.formats import FORMATS, Drawing, TraceFormat
from kvtier.trace.trace import Row, Trace, TraceBuilder

_SHOWN = 10  # malformed rows that are remembered in words


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
        self.format = _format(path, name, drawing or Drawing())

    def rows(self) -> Iterator[Row]:
        """Walk the requests in the file's order, once; a file that cannot be read is a ConfigError."""
        with open_lines(self.path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = self.format.parse(line)
                except (ValueError, OverflowError, IndexError) as exc:
                    self.skipped.add(number, str(exc))
                    continue
                if row is not None:
                    yield row

    def load(self, chunk_tokens: int | None = None) -> Trace:
        """Read all of it, in chunks of so many tokens instead of the file's blocks.

        Raises:
            ConfigError: it has no request, or `chunk_tokens` is no multiple of its blocks.
        """
        builder: TraceBuilder | None = None
        for row in self.rows():
            builder = builder or self._builder(chunk_tokens)
            builder.add(row)
        if builder is None:
            first = f"; line {self.skipped.rows[0][0]}: {self.skipped.rows[0][1]}"
            raise ConfigError(
                f"{self.path}: there is no request in it{first if self.skipped.count else ''}"
            )
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
    try:
        with open_file(path, path.suffix, "rb") as file:
            yield iter(io.BufferedReader(cast(io.RawIOBase, file), 1 << 20))
    except _broken(path) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc


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
        if cast(type[TraceFormat], make).recognises(first):
            return make(drawing)
    raise ConfigError(f"{path}: its first line is of no known format; name it with --format")
