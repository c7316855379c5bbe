"""Plain LRU with the prefix rule on one tier, compiled: the answer of the brain, hundreds of times as fast.

Model: as `blocks.replay_blocks` drives the brain, with ids that are prefix-chained. numba comes with vLLM; without it
the brain is asked.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.config import Plugin
from kvtier.sim.belady import dense
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.sim.setting import ASSUMED, Prefill
from kvtier.trace.trace import Trace

_Ints = npt.NDArray[np.int64]
_LEAST = 200_000  # references: fewer are replayed by the brain in the time that compiling takes


class OneTierReplay(NamedTuple):
    """What one replay found; what was loaded is what was hit."""

    hits: _Ints  # blocks per request
    stores: int


def replay_one_tier(
    trace: Trace,
    eviction: Plugin,
    *,
    slots: int,
    block_nbytes: int = 1,
    prefill: Prefill = ASSUMED,
) -> OneTierReplay:
    """Replay a trace through one tier: by the compiled loop if the question is LRU and large, else through the brain."""
    compiled = eviction == Plugin(kind="lru") and len(trace.ids) >= _LEAST and slots > 0
    if compiled and find_spec("numba"):
        return replay_lru(trace, slots)
    done = replay_blocks(
        trace, one_tier(eviction), slots=slots, block_nbytes=block_nbytes, prefill=prefill
    )
    return OneTierReplay(done.hits, done.stats.stores)


def replay_lru(trace: Trace, slots: int) -> OneTierReplay:
    """Let every request in turn hit what is there of its prefix and store the rest."""
    ids, n = dense(trace.ids)
    hits = np.zeros(len(trace), np.int64)
    replay, unlink, append = _compiled()
    stores = replay(ids, trace.starts, n, slots, hits, unlink, append)
    return OneTierReplay(hits, int(stores))


@cache
def _compiled() -> tuple[Callable[..., Any], ...]:
    import numba

    return tuple(numba.njit(each) for each in (_replay, _unlink, _append))


def _replay(ids: Any, starts: Any, n: int, free: int, hits: Any, unlink: Any, append: Any) -> int:
    """Keep the blocks in a ring, oldest first; its `n` is no block, it stands before the oldest."""
    older, younger = np.full(n + 1, n), np.full(n + 1, n)
    here = np.zeros(n + 1, np.bool_)
    stores = 0
    for request in range(len(starts) - 1):
        start, end = starts[request], starts[request + 1]
        middle = start
        while middle < end and here[ids[middle]]:
            middle += 1
        hits[request] = middle - start
        for i in range(middle - 1, start - 1, -1):  # a use, tail first
            unlink(older, younger, ids[i])
            append(older, younger, n, ids[i])
        while free < end - middle:
            oldest = younger[n]
            if oldest == n or (middle > start and oldest == ids[middle - 1]):
                break
            unlink(older, younger, oldest)
            here[oldest] = False
            free += 1
        taken = min(free, end - middle)
        for i in range(middle + taken - 1, middle - 1, -1):
            here[ids[i]] = True
            append(older, younger, n, ids[i])
        for i in range(middle - 1, start - 1, -1):  # what they continue is used with them
            unlink(older, younger, ids[i])
            append(older, younger, n, ids[i])
        free -= taken
        stores += taken
    return stores


def _unlink(older: Any, younger: Any, block: int) -> None:
    older[younger[block]] = older[block]
    younger[older[block]] = younger[block]


def _append(older: Any, younger: Any, n: int, block: int) -> None:
    older[block], younger[block] = older[n], n
    younger[older[n]] = block
    older[n] = block
