"""The ceilings: the best that any policy could do that knew the future, and a cache that never forgets.

Model: a request hits the longest prefix of its blocks that is in the cache; afterwards the cache holds
any blocks of before and of the request, at most `capacity`.

Claim: to keep the blocks whose next use is nearest, and among equals the heads, hits as many blocks as any
policy can. Ids are prefix-chained: whenever a block is used its parent is used too, so a parent's next use is
never later than its child's, and with heads first among equals the kept set is closed under parents. So every
block of a request that is kept counts as a hit, and those come before its misses. That is paging with bypass
on the sequence of all references, for which keeping the nearest next use is optimal (Belady 1966, MIN; an
exchange argument). Conversely every policy of the model, strict prefix rule or none, becomes a paging schedule
with at least its hits: keep of its cache what it hits until it is hit, which comes first, and change the rest after.
"""

from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from kvtier.trace.trace import Ids, Trace

_Ints = npt.NDArray[np.int64]


def infinite(trace: Trace) -> _Ints:
    """Count per request what a cache that never forgets hits: the blocks that any request before had."""
    ids, n = dense(trace.ids)
    first = np.full(n, len(ids), np.int64)
    np.minimum.at(first, ids, np.arange(len(ids)))
    seen = first[ids] < np.arange(len(ids))
    sums = np.concatenate(([0], np.cumsum(seen)))
    return np.diff(sums[trace.starts])


def belady(trace: Trace, capacity: int) -> _Ints:
    """Count per request what the best policy hits that knows the future, with room for `capacity` blocks."""
    ids, n = dense(trace.ids)
    following = next_uses(ids, trace.starts)
    hits = np.zeros(len(trace), np.int64)
    kept = _Kept(n, capacity)
    for i, (start, end) in enumerate(zip(trace.starts[:-1], trace.starts[1:], strict=True)):
        blocks, later = ids[start:end].tolist(), following[start:end].tolist()
        hits[i] = kept.use(i, blocks, later)
    return hits


class _Kept:
    """The kept blocks, each with its next use; a heap names the one to give up next.

    The heap orders by next use, then depth, latest and deepest first. Entries that a later use made
    stale stay until they surface.
    """

    def __init__(self, n: int, capacity: int) -> None:
        self._due = [-1] * n  # the request that uses a kept block next; -1: not kept
        self._heap: list[tuple[int, int, int]] = []
        self._capacity = capacity
        self._size = 0

    def use(self, now: int, blocks: list[int], later: list[int]) -> int:
        """Serve request `now`; return how many of its blocks were kept."""
        due, heap, hits = self._due, self._heap, 0
        for depth, (block, following) in enumerate(zip(blocks, later, strict=True)):
            if due[block] >= 0:
                hits += 1
                self._size -= 1
                due[block] = -1
            if following >= 0:
                due[block] = following
                heappush(heap, (-following, -depth, block))
                self._size += 1
        while self._size > self._capacity:
            negative, _, block = heappop(heap)
            if due[block] == -negative:
                due[block] = -1
                self._size -= 1
        return hits


def dense(ids: Ids) -> tuple[Ids, int]:
    """Renumber ids from 0; return them and how many there are."""
    known, renumbered = np.unique(ids, return_inverse=True)
    return renumbered.astype(np.int64, copy=False), len(known)


def next_uses(ids: Ids, starts: _Ints) -> _Ints:
    """Return for each reference the request that uses its block next, -1 if none does."""
    requests = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.argsort(ids, kind="stable")
    following = np.full(len(ids), -1, np.int64)
    same = ids[order][:-1] == ids[order][1:]
    following[order[:-1][same]] = requests[order[1:][same]]
    return following
