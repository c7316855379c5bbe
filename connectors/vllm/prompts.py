"""Where each prompt's KV came from: counted once, with the request's first output, as vLLM counts its prompt tokens.

vLLM has the figures in a request's `prefill_stats`, of its last admission before a preemption, and takes them away with
its first output: whoever is aborted before has none. What it loads and does not get is computed, but not in vLLM's books.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kvtier.brain import TieredCache, Why
from kvtier.brain.stats import EngineStats
from kvtier.connectors.vllm.hints import wants_report
from kvtier.connectors.vllm.live import LiveRequest
from kvtier.types import COMPUTED, HBM, OTHER, TIER0

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Part(NamedTuple):
    """The tokens [start, end) of a prompt, which a tier had."""

    start: int
    end: int
    tier: int


@dataclass(slots=True)
class Prompt:
    """A request that was admitted and has no output yet."""

    request: "Request"
    figures: Any  # vLLM's own
    parts: list[Part]  # of its hit, in order
    misses: Mapping[Why, int]
    waited_s: float = 0.0  # for reads, until it was admitted
    valid: int = sys.maxsize  # from this token on, what was to be loaded is not


@dataclass(slots=True)
class Prompts:
    """The prompts that are not complete, and the books of those that are. EngineCore's main thread only."""

    stats: EngineStats = field(default_factory=EngineStats)
    clock: Callable[[], float] = time.time  # as of requests' arrivals
    tiers: Sequence[str] = ()  # names
    pace: float = 0.0  # seconds to compute a token
    timer: Callable[[], float] = time.monotonic
    _open: dict[str, Prompt] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)  # who waits for reads, and since when
    _reports: dict[str, dict[str, object]] = field(default_factory=dict)  # of who asked for one

    def show(self, tiers: Sequence[str]) -> None:
        """Take the names of the tiers."""
        self.tiers = tiers
        self.stats.show(tiers)

    def waits(self, request: str) -> None:
        """Note that a request waits for reads from now on."""
        self._waiting.setdefault(request, self.timer())

    def admit(
        self, request: "Request", loaded: int, live: LiveRequest | None, brain: TieredCache | Why
    ) -> None:
        """Note an admission with a hit of `loaded` tokens of ours, and the brain, or why there is none."""
        figures, name = _figures(request), request.request_id
        since = self._waiting.pop(name, None)
        if figures is None:
            return
        first, computed = figures.num_local_cached_tokens, figures.num_computed_tokens
        parts = _parts(first, first + loaded, live)
        if isinstance(brain, Why):
            misses: Mapping[Why, int] = {brain: computed}
        else:
            end = figures.num_prompt_tokens
            misses = brain.view.missed(name, end - computed, end)
            self.pace = brain.view.pace
        waited_s = 0.0 if since is None else self.timer() - since
        self._open[name] = Prompt(request, figures, parts, misses, waited_s)

    def lost(self, request: str, token: int) -> None:
        """Note that a load failed from a token on: vLLM computes from there."""
        prompt = self._open.get(request)
        if prompt is not None and prompt.request.num_preemptions <= 0:
            prompt.valid = min(prompt.valid, token)

    def settle(self) -> None:
        """Count the prompts whose request has its first output by now."""
        if self._open:
            done = [name for name, each in self._open.items() if each.request.prefill_stats is None]
            for name in done:
                self._count(self._open.pop(name))

    def finished(self, request: str) -> dict[str, object] | None:
        """Count the prompt of a request that ends with its first output; one without an output is not counted.

        Returns:
            What it asked to be told; None where it asked for nothing, or was not counted.
        """
        self._waiting.pop(request, None)
        prompt = self._open.pop(request, None)
        if prompt is not None and prompt.request.prefill_stats is None:
            self._count(prompt)
        return self._reports.pop(request, None)

    def _count(self, prompt: Prompt) -> None:
        figures, tokens, misses = prompt.figures, Counter[str](), Counter(prompt.misses)
        tokens[COMPUTED], source = figures.num_computed_tokens, COMPUTED
        if hbm := figures.num_local_cached_tokens:
            tokens[HBM] = hbm
            source = HBM
        other, deepest = figures.num_external_cached_tokens, TIER0
        for part in prompt.parts:
            other -= part.end - part.start
            had = max(0, min(part.end, prompt.valid) - part.start)
            if failed := part.end - part.start - had:
                tokens[COMPUTED] += failed
                misses[Why.FAILED] += failed
            if had:
                name = self.tiers[part.tier]
                tokens[name] += had
                self.stats.saved[name] += had * self.pace  # type: ignore[assignment]  # seconds
                deepest = max(deepest, part.tier)
                source = self.tiers[deepest]
        if other:
            tokens[OTHER] = other
            source = OTHER
        for name, n in tokens.items():
            self.stats.tokens[name] += n
        for why, n in misses.items():
            self.stats.misses[why] += n
        self.stats.ttft.note(max(0.0, self.clock() - prompt.request.arrival_time), source)
        if wants_report(prompt.request):
            self._reports[prompt.request.request_id] = self._report(prompt, tokens, misses)

    def _report(
        self, prompt: Prompt, tokens: Mapping[str, int], misses: Mapping[Why, int]
    ) -> dict[str, object]:
        """Say of one prompt what the metrics say of all: each name of a source has its tokens, also if none."""
        names = dict.fromkeys((COMPUTED, HBM, *self.tiers, *tokens), 0)
        return {
            "tokens": names | dict(tokens),
            "wait_ms": round(prompt.waited_s * 1e3, 1),
            "why": max(misses, key=lambda why: misses[why]).value if misses else None,
        }


def _figures(request: "Request") -> Any:
    """Give vLLM's figures of the admission that it makes now, if it counts: the first, or one after a load that failed as a whole."""
    if request.num_preemptions > 0 or request.num_computed_tokens:
        return None
    return request.prefill_stats


def _parts(start: int, end: int, live: LiveRequest | None) -> list[Part]:
    """Split a hit of the tokens [start, end) by the tiers that had it: what ends with a chunk is that chunk's."""
    if end == start:
        return []
    if live is None or not live.below:
        return [Part(start, end, TIER0)]
    parts: list[Part] = []
    for key, chunk_end in live.loads:
        until, tier = min(chunk_end, end), live.below.get(key, TIER0)
        if until <= start:
            continue
        if parts and parts[-1].tier == tier:
            parts[-1] = parts[-1]._replace(end=until)
        else:
            parts.append(Part(start, until, tier))
        start = until
    if start < end:
        parts.append(Part(start, end, parts[-1].tier if parts else max(live.below.values())))
    return parts
