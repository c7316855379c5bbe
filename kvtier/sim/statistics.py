"""What a trace is like: lengths, gaps, turns, and how its hits grow with the size of the cache."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.config import Plugin
from kvtier.sim.belady import infinite
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.trace.sessions import lineages
from kvtier.trace.trace import Trace

QUANTILES = (10, 50, 90, 99)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of a trace."""

    name: str
    unit: str
    mean: float
    quantiles: list[float]  # at QUANTILES percent


class TraceStats(msgspec.Struct, frozen=True, kw_only=True):
    """One trace."""

    requests: int
    seconds: float
    block_tokens: int
    block_references: int
    distinct_blocks: int
    infinite_hit: float
    lru_hits: dict[int, float]  # share of the blocks, by tokens of capacity
    distributions: list[Distribution]


def describe(trace: Trace, capacities: Sequence[int]) -> TraceStats:
    """Measure a trace; the hits are those of LRU in the brain itself."""
    config = one_tier(Plugin(kind="lru"))
    hits = {}
    for capacity in capacities:
        done = replay_blocks(trace, config, slots=capacity // trace.block_tokens, block_nbytes=1)
        hits[capacity] = float(done.hits.sum()) / max(1, len(trace.ids))
    of = lineages(trace)
    return TraceStats(
        requests=len(trace),
        seconds=float(trace.at_s[-1] - trace.at_s[0]),
        block_tokens=trace.block_tokens,
        block_references=len(trace.ids),
        distinct_blocks=trace.distinct,
        infinite_hit=float(infinite(trace).sum()) / max(1, len(trace.ids)),
        lru_hits=hits,
        distributions=[
            _distribution("prompt", "tokens", trace.prompt_tokens),
            _distribution("answer", "tokens", trace.output_tokens),
            _distribution("reuse gap", "s", reuse_gaps(trace)),
            _distribution("turn gap", "s", _gaps(trace.at_s, of)),
            _distribution("turns", "per session", np.unique(of, return_counts=True)[1]),
            _distribution("arrival gap", "s", np.diff(trace.at_s)),
        ],
    )


def reuse_gaps(trace: Trace) -> npt.NDArray[np.float64]:
    """Return the seconds between the uses of a block: one number per use, except the first use of each block."""
    return _gaps(np.repeat(trace.at_s, np.diff(trace.starts)), trace.ids)


def _gaps(at_s: npt.NDArray[np.float64], of: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the seconds from each event to the next one with the same number in `of`."""
    order = np.argsort(of, kind="stable")
    same = of[order][1:] == of[order][:-1]
    gaps: npt.NDArray[np.float64] = np.diff(at_s[order])[same]
    return gaps


def _distribution(
    name: str,
    unit: str,
    values: npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.float64],
) -> Distribution:
    if not len(values):
        return Distribution(name=name, unit=unit, mean=0.0, quantiles=[0.0] * len(QUANTILES))
    quantiles = [float(q) for q in np.percentile(values, QUANTILES)]
    return Distribution(name=name, unit=unit, mean=float(values.mean()), quantiles=quantiles)
