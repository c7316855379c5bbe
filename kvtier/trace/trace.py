"""A trace in memory: a few numbers per request and one per block reference, in numpy columns.

Block ids are prefix-chained: equal ids mean equal whole prefixes, so an id has one parent for ever.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from kvtier.types import BlockKey

Ids = npt.NDArray[np.int64]
NO_SESSION = -1
_SLICE = 1 << 20
_GROUP_BITS = 32  # of the KV-cache group that ends a key: always the first


MOST_TOKENS = 1 << 25
"""Of one prompt, or of one answer."""
_MOST_NUMBER = 2**31 - 1  # of a session: a column of int32
_MOST_S = 1e12
_COPIES = 8  # of the column of block ids, while a trace is put in order and replayed


class Row(NamedTuple):
    """One request as a file tells it."""

    at_s: float  # arrival, from the start of the trace
    prompt_tokens: int
    output_tokens: int
    blocks: Ids  # of the prompt, from its start
    session: int = NO_SESSION
    think_s: float | None = None  # from the end of the session's last answer to this request


def check_tokens(*counts: int) -> None:
    """Raise a ValueError for a length that no request has: before its blocks are written out."""
    for count in counts:
        if not 0 <= count <= MOST_TOKENS:
            raise ValueError(f"{count} tokens: not from 0 to {MOST_TOKENS:,}")


def check(row: Row) -> None:
    """Raise a ValueError for numbers that do not fit into the columns of a trace."""
    check_tokens(row.prompt_tokens, row.output_tokens)
    if not abs(row.at_s) <= _MOST_S:
        raise ValueError(f"second {row.at_s:g}")
    if row.think_s is not None and not 0 <= row.think_s <= _MOST_S:
        raise ValueError(f"{row.think_s:g} seconds of thinking")
    if not NO_SESSION <= row.session <= _MOST_NUMBER:
        raise ValueError(f"session {row.session}: not from {NO_SESSION} to {_MOST_NUMBER}")
    if len(row.blocks) and row.blocks.min() < 0:
        raise ValueError("a negative id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of arrival; the blocks of request i are `ids[starts[i]:starts[i + 1]]`."""

    block_tokens: int
    at_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    session: npt.NDArray[np.int32]
    think_s: npt.NDArray[np.float32]  # NaN where the file does not say
    starts: npt.NDArray[np.int64]
    ids: Ids

    def __len__(self) -> int:
        return len(self.at_s)

    def blocks(self, i: int) -> Ids:
        """Return the block ids of request `i`."""
        return self.ids[self.starts[i] : self.starts[i + 1]]

    def keys(self, i: int) -> list[BlockKey]:
        """Return the chunk keys of request `i`, as the brain takes them."""
        return keys_of(self.blocks(i))

    def first(self, n: int) -> "Trace":
        """Return a trace of the first `n` requests."""
        return replace(
            self,
            at_s=self.at_s[:n],
            prompt_tokens=self.prompt_tokens[:n],
            output_tokens=self.output_tokens[:n],
            session=self.session[:n],
            think_s=self.think_s[:n],
            starts=self.starts[: n + 1],
            ids=self.ids[: self.starts[min(n, len(self))]],
        )

    @property
    def distinct(self) -> int:
        """How many different blocks there are."""
        return len(np.unique(self.ids))


def keys_of(ids: Ids) -> list[BlockKey]:
    """Turn block ids into keys of the first KV-cache group."""
    keys = [(i << _GROUP_BITS).to_bytes(12, "big") for i in ids.tolist()]
    return cast(list[BlockKey], keys)


class TraceBuilder:
    """Collect rows, then put them in order; ids that are not prefix-chained are chained."""

    def __init__(self, block_tokens: int, chunk_tokens: int | None = None) -> None:
        self._block_tokens = chunk_tokens or block_tokens
        self._per_chunk = self._block_tokens // block_tokens
        assert self._per_chunk * block_tokens == self._block_tokens, "not a multiple of the block"
        self._numbers = [array("d") for _ in range(6)]  # as the columns of `Trace`, then blocks
        self._ids = array("q")

    def add(self, row: Row) -> None:
        """Take one request; of blocks that make no whole chunk only the whole ones."""
        k = self._per_chunk
        ids = row.blocks if k == 1 else row.blocks[k - 1 :: k]
        think = np.nan if row.think_s is None else row.think_s
        numbers = (row.at_s, row.prompt_tokens, row.output_tokens, row.session, think, len(ids))
        for column, number in zip(self._numbers, numbers, strict=True):
            column.append(number)
        self._ids.frombytes(ids.tobytes())

    @property
    def references(self) -> int:
        """How many blocks the rows have, each as often as it is named."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Memory that the trace will take while it is replayed."""
        return self._ids.itemsize * len(self._ids) * _COPIES

    def build(self) -> Trace:
        """Return the trace, sorted by arrival."""
        at, prompt, output, session, think, n = (np.array(column) for column in self._numbers)
        ids = np.frombuffer(self._ids, np.int64) if self._ids else np.zeros(0, np.int64)
        starts = _starts(n)
        order = np.argsort(at, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            parts = [ids[starts[i] : starts[i + 1]] for i in order]
            ids = np.concatenate(parts)
            starts = _starts(n[order])
        return Trace(
            block_tokens=self._block_tokens,
            at_s=at[order],
            prompt_tokens=prompt[order].astype(np.int32),
            output_tokens=output[order].astype(np.int32),
            session=session[order].astype(np.int32),
            think_s=think[order].astype(np.float32),
            starts=starts,
            ids=ids if chained(ids, starts) else chain(ids, starts),
        )


def _starts(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts.astype(np.int64))))


def chained(ids: Ids, starts: npt.NDArray[np.int64]) -> bool:
    """Whether every id always follows the same one."""
    before = np.roll(ids, 1)  # the id before each id, -1 at the start of a request
    firsts = starts[:-1]
    before[firsts[firsts < len(ids)]] = -1  # an empty request shares its start with the next
    order = np.argsort(ids, kind="stable")
    for i in range(0, len(ids) - 1, _SLICE):  # in slices: a copy of every column would be gigabytes
        some = order[i : i + _SLICE + 1]
        same = ids[some[1:]] == ids[some[:-1]]
        if (same & (before[some[1:]] != before[some[:-1]])).any():
            return False
    return True


def chain(ids: Ids, starts: npt.NDArray[np.int64]) -> Ids:
    """Give new ids, so that equal ones mean equal whole prefixes."""
    known: dict[tuple[int, int], int] = {}
    out = np.empty_like(ids)
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parent = -1
        for i, block in enumerate(ids[start:end].tolist(), start):
            parent = known.setdefault((parent, block), len(known))
            out[i] = parent
    return out


def expand(runs: Sequence[tuple[int, int]]) -> Ids:
    """Write out ids that are given as (first, count) runs."""
    parts = [np.arange(first, first + n, dtype=np.int64) for first, n in runs]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def runs_of(ids: Ids) -> list[tuple[int, int]]:
    """Write ids as (first, count) runs."""
    if not len(ids):
        return []
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    heads = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((heads, [len(ids)])))
    return list(zip(ids[heads].tolist(), counts.tolist(), strict=True))
