"""What fits where, what a byte of KV must cost to be worth reading, and how much memory a hit target needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kvtier.sim.belady import infinite
from kvtier.sim.setting import Prefill, worth
from kvtier.trace.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Kv:
    """How much KV a model makes, of all ranks together."""

    nbytes_per_token: float  # of the layers that keep every token
    window_nbytes: float = 0.0  # of the layers that keep a window, once per conversation
    window_tokens: int = 0

    def nbytes(self, context: int) -> float:
        """Return the bytes of one conversation of so many tokens."""
        if not self.window_tokens:
            return context * self.nbytes_per_token
        kept = min(context, self.window_tokens) / self.window_tokens
        return context * self.nbytes_per_token + kept * self.window_nbytes


class Fit(NamedTuple):
    """One place for KV."""

    name: str
    nbytes: int
    tokens: int  # of conversations of the planned context
    conversations: float


def fit(name: str, nbytes: int, kv: Kv, context: int) -> Fit:
    """Say what a place holds."""
    each = kv.nbytes(context)
    return Fit(name, nbytes, int(nbytes / each * context), nbytes / each)


def break_even(kv: Kv, context: int, prefill: Prefill) -> float:
    """Return the bytes per second above which reading a whole context is faster than computing it."""
    return kv.nbytes(context) / prefill.seconds(0, context)


class Sizing(NamedTuple):
    """The smallest cache found for a hit target."""

    tokens: int
    share: float  # of the prefill's seconds that it saves
    best: float  # that an infinite cache saves


def smallest(
    trace: Trace, target: float, saved: Callable[[int], float], prefill: Prefill
) -> Sizing | None:
    """Find the smallest cache, to 2 %, that saves `target` of what an infinite one saves.

    `saved` replays one size in blocks. Hits need not grow with the size under every policy: what is found
    reaches the target, a smaller one that does is not excluded. None: no size does, the trace has no reuse.
    """
    best = worth(trace, infinite(trace), prefill).saved_prefill
    if not best:
        return None
    high = max(1, trace.distinct)
    share = saved(high)
    if share < target * best:
        return None
    low = 0
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        here = saved(middle) if middle else 0.0
        if here >= target * best:
            high, share = middle, here
        else:
            low = middle
    return Sizing(high * trace.block_tokens, share, best)
