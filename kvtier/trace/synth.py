"""Synthetic traces, streamed: sessions one after the other, only those that are open are in memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from kvtier.errors import ConfigError, reason
from kvtier.replacement import replacement
from kvtier.trace.files import open_file
from kvtier.trace.formats.own import VERSION, Heading, TraceLine
from kvtier.trace.sessions import Template
from kvtier.trace.trace import Row, runs_of

_OWN = 1 << 40  # own blocks count from here, above the shared ones


def resampled(source: Sequence[Template], seed: int) -> Iterator[Template]:
    """Draw sessions of a source with replacement, without end; their starts keep its gaps."""
    rng = np.random.default_rng(seed)
    starts = np.array([template.start_s for template in source])
    gaps = np.diff(starts) if len(starts) > 1 else np.array([60.0])
    at = 0.0
    while True:
        template = source[int(rng.integers(len(source)))]
        yield template._replace(start_s=at)
        at += float(rng.choice(gaps))


def stream(sessions: Iterable[Template], requests: int) -> Iterator[Row]:
    """Interleave sessions into the first `requests` requests, in order of arrival."""
    return islice(_interleave(iter(sessions)), requests)


def _interleave(sessions: Iterator[Template]) -> Iterator[Row]:
    waiting: list[tuple[float, int, int, Template, int]] = []  # time, session, turn, -, first block
    coming = next(sessions, None)
    base, numbers = _OWN, count()
    while waiting or coming:
        while coming and (not waiting or coming.start_s <= waiting[0][0]):
            heappush(waiting, (coming.start_s, next(numbers), 0, coming, base))
            base += coming.private
            coming = next(sessions, None)
        at, session, turn, template, own = heappop(waiting)
        made = template.turns[turn]
        if turn + 1 < len(template.turns):
            later = at + template.turns[turn + 1].gap_s
            heappush(waiting, (later, session, turn + 1, template, own))
        think = None if np.isnan(made.think_s) else made.think_s
        blocks = np.concatenate((made.shared, made.private + own))
        yield Row(at, made.prompt_tokens, made.output_tokens, blocks, session, think)


def write(path: Path, rows: Iterable[Row], block_tokens: int) -> int:
    """Write a trace in kvtier's own format, compressed if its name ends in .gz or .zst; return its requests."""
    encoder = msgspec.json.Encoder()
    n = 0
    with _create(path) as file:
        file.write(encoder.encode(Heading(VERSION, block_tokens)) + b"\n")
        for row in rows:
            line = TraceLine(
                at_s=round(row.at_s, 6),
                prompt=row.prompt_tokens,
                output=row.output_tokens,
                runs=runs_of(row.blocks),
                s=row.session,
                think=row.think_s,
            )
            file.write(encoder.encode(line) + b"\n")
            n += 1
    return n


@contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
    try:
        with replacement(path) as partial, open_file(partial, path.suffix, "wb") as file:
            yield file
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {reason(exc)}") from exc
