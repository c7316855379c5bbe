"""What a replay assumes of the model and the machine, and what a hit is worth under it."""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from kvtier.config import ReplayConfig
from kvtier.trace.trace import Trace

_Ints = npt.NDArray[np.int64]
_Tokens = TypeVar("_Tokens", float, npt.NDArray[np.float64])
_CONFIG = ReplayConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """How long the engine computes.

    Tokens a..b of a prompt take ((b - a) + (b² - a²) / (2 knee)) / rate seconds: a dense transformer spends
    2 FLOP per parameter and token, and 4 x layers x width FLOP per token and token before it (Kaplan et
    al. 2020, section 2.1, forward pass); `knee` is the context at which both are equal.
    """

    rate: float = _CONFIG.prefill_rate  # tokens per second without context
    knee: float = _CONFIG.prefill_knee

    @classmethod
    def of(cls, config: ReplayConfig) -> "Prefill":
        """Take what a configuration assumes."""
        return cls(rate=config.prefill_rate, knee=config.prefill_knee)

    def seconds(self, start: float, end: _Tokens) -> _Tokens:
        """Return the seconds that computing tokens `start` to `end` of a prompt takes."""
        return ((end - start) + (end * end - start * start) / (2 * self.knee)) / self.rate


ASSUMED = Prefill()


class Worth(NamedTuple):
    """What the hits of a replay are worth; shares are of the whole trace."""

    hit_blocks: float  # share of the blocks
    hit_tokens: float  # share of the prompts' tokens
    saved_prefill_s: float
    saved_prefill: float  # share of the seconds without any hit


def worth(trace: Trace, hits: _Ints, prefill: Prefill) -> Worth:
    """Weigh hits: blocks per request, counted from the start of its prompt."""
    prompts = trace.prompt_tokens.astype(np.float64)
    tokens = np.minimum(hits * trace.block_tokens, prompts)
    saved, whole = (float(prefill.seconds(0, each).sum()) for each in (tokens, prompts))
    return Worth(
        hit_blocks=_share(float(hits.sum()), len(trace.ids)),
        hit_tokens=_share(float(tokens.sum()), float(prompts.sum())),
        saved_prefill_s=saved,
        saved_prefill=_share(saved, whole),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
