"""An engine in virtual time in front of the brain, with its tiers: the replay that has timing.

The queueing model. One engine computes one prompt at a time, in order of arrival among those that are ready.
A waiting request is looked up when the engine is free for it; while its reads run, others pass it. A hit is
copied to the device while others compute, on one channel per direction. Then the tokens that are not hit, at
least one, take `Prefill.seconds`; the end of that is the first token. Decoding slows nothing down and takes
`output / decode_rate`; the prompt is stored when it is computed, and the request leaves with its last token.
The device keeps nothing between requests. A session's next request comes its thinking time after the answer,
where the trace tells one; else it keeps its recorded distance from the request before; without sessions,
requests come when the trace says. The brain's orders go out, and answers come in, once per step of 10 ms.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from kvtier.assembly import assemble
from kvtier.brain import CacheStats
from kvtier.config import ARENA, Config, MediumConfig
from kvtier.errors import ConfigError
from kvtier.sim.blocks import hit_length, usable
from kvtier.sim.media import Media
from kvtier.sim.results import Moment
from kvtier.sim.setting import Prefill
from kvtier.sim.timeline import Timeline
from kvtier.trace.trace import NO_SESSION, Trace
from kvtier.types import BlockKey, GroupSpec, OpKind, OpResult, OpStatus, ScanBatch

_MOMENTS = 200  # samples of occupancy
_STEP_S = 0.01  # an engine's step while it decodes
_OFFER_AGAIN_S = 0.05  # what had no room is offered at a later step


@dataclass(slots=True)
class _Waiting:
    """One request until it leaves."""

    i: int
    name: str
    keys: list[BlockKey]
    arrived: float
    hit: int = 0  # chunks
    loaded: bool = False
    left: bool = False


@dataclass(slots=True)
class _Pipe:
    """Copies between the device and DRAM in one direction, one after the other."""

    bandwidth: float
    latency_s: float
    free_at: float = 0.0

    def seconds(self, nbytes: int) -> float:
        """Return how long a copy takes by itself."""
        return self.latency_s + nbytes / self.bandwidth

    def take(self, now: float, nbytes: int) -> float:
        """Return when a copy that is ordered now is over."""
        self.free_at = max(self.free_at, now) + nbytes / self.bandwidth
        return self.free_at + self.latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReplay:
    """What one replay found; arrays are per request of the trace."""

    hits: npt.NDArray[np.int64]  # blocks
    ttft_s: npt.NDArray[np.float64]
    stats: CacheStats = field(repr=False)
    occupancy: list[Moment] = field(repr=False)
    ended_s: float
    busy_s: float  # of computing prompts


def replay_engine(trace: Trace, config: Config, *, slots: int) -> EngineReplay:
    """Serve a whole trace; without room for one chunk, or a policy, that is a ConfigError."""
    if slots < 1:
        raise ConfigError(f"tiers[0]: no room for one chunk of {trace.block_tokens} tokens")
    return _Engine(trace, config, usable(slots, trace)).run()


def media_of(config: Config) -> list[MediumConfig]:
    """Return the speeds of all tiers, DRAM first."""
    assumed = (MediumConfig() if i else ARENA for i in range(len(config.tiers)))
    return [tier.medium or medium for tier, medium in zip(config.tiers, assumed, strict=True)]


class _Engine:
    def __init__(self, trace: Trace, config: Config, slots: int) -> None:
        self._trace = trace
        self._time = Timeline()
        self._chunk_nbytes = trace.block_tokens * config.replay.kv_bytes_per_token
        group = GroupSpec(0, trace.block_tokens, None, self._chunk_nbytes)
        self._cache = assemble(
            config,
            [group],
            ranks=1,
            clock=self._time,
            even_tokens=config.replay.prefill_knee,
            events=False,
        )
        dram, *lower = media_of(config)
        self._up = _Pipe(dram.read, dram.latency_s)
        self._down = _Pipe(dram.write, dram.latency_s)
        self._media = Media(
            self._time,
            lower,
            idle_rate=config.io.idle_write,
            raw_nbytes=self._chunk_nbytes,
            answer=lambda results: self._results.extend(results),
        )
        self._prefill = Prefill.of(config.replay)
        self._decode_rate = config.replay.decode_rate
        self._patience = max((tier.deadline_s for tier in config.tiers[1:]), default=0.0)
        self._queue: deque[_Waiting] = deque()
        self._busy = self._stepping = self._stepped = False
        self._results: list[OpResult] = []
        self._busy_s = 0.0
        self._next = successors(trace)
        self._hits = np.zeros(len(trace), np.int64)
        self._ttft = np.zeros(len(trace), np.float64)
        self._samples: list[Moment] = []
        self._sample_at = 0.0
        self._sample_every = (float(trace.at_s[-1]) + 1.0) / _MOMENTS
        self._cache.open(slots, "{}")

    def run(self) -> EngineReplay:
        self._open()
        followers = set(self._next.values())
        for i in range(len(self._trace)):
            if i not in followers:
                self._time.at(float(self._trace.at_s[i]), partial(self._arrive, i))
        while self._time.step():
            if not self._stepped:
                self._step_soon()
            self._stepped = False
        assert not self._queue, "a request was never served"
        return EngineReplay(
            hits=self._hits,
            ttft_s=self._ttft,
            stats=self._cache.stats(),
            occupancy=self._samples,
            ended_s=self._time.now,
            busy_s=self._busy_s,
        )

    def _open(self) -> None:
        """Start the tiers below: they are empty."""
        opens = self._cache.drain()
        assert all(op.kind is OpKind.OPEN for op in opens)
        self._cache.complete([OpResult(0, op.op, OpStatus.OK) for op in opens])
        for op in opens:
            self._cache.scanned(ScanBatch(0, op.tier, op.op, [], [], [], True))

    def _step_soon(self) -> None:
        if not self._stepping:
            self._stepping = True
            self._time.after(_STEP_S, self._step)

    def _step(self) -> None:
        """Exchange answers and orders; an engine in which nothing happens does not step."""
        self._stepping, self._stepped = False, True
        results, self._results = self._results, []
        if results:
            self._cache.complete(results)
            self._schedule()
        self._media.submit(self._cache.drain())
        self._sample()
        if self._time.pending and self._cache.awake():
            self._step_soon()

    def _arrive(self, i: int) -> None:
        request = _Waiting(i, str(i), self._trace.keys(i), self._time.now)
        self._cache.arrive(request.name, [request.keys])
        self._queue.append(request)
        follower = self._next.get(i)
        if follower is not None and np.isnan(self._trace.think_s[follower]):
            gap = float(self._trace.at_s[follower] - self._trace.at_s[i])
            self._time.after(gap, partial(self._arrive, follower))
        self._schedule()

    def _schedule(self) -> None:
        """Give the engine its next prompt: the first in the queue that is ready."""
        if self._busy:
            return
        for request in self._queue:
            if request.loaded or self._ready(request):
                self._queue.remove(request)
                self._compute(request)
                return

    def _ready(self, request: _Waiting) -> bool:
        """Look a request up as the connector does; False: it waits for a read or a copy."""
        cache, name = self._cache, request.name
        if request.left or not cache.ready(name):
            return False
        for _ in range(2):
            n = hit_length(cache, name, request.keys)
            if not n:
                return True
            plan = cache.plan_read(name, request.keys[:n])
            if plan is None:
                self._load(request, n)
                return False
            if plan.reading:
                self._time.after(self._patience, self._schedule)
                return False
        return True

    def _load(self, request: _Waiting, n: int) -> None:
        plan = self._cache.plan_load(request.name, request.keys[:n])
        request.hit = n
        request.left = True
        nbytes = n * self._chunk_nbytes
        over = self._up.take(self._time.now, nbytes)
        self._time.at(over, partial(self._loaded, request, plan.plan_id, nbytes))

    def _loaded(self, request: _Waiting, plan: int, nbytes: int) -> None:
        self._cache.finish(plan)
        self._cache.transferred(nbytes, self._up.seconds(nbytes))
        request.loaded = True
        self._schedule()

    def _compute(self, request: _Waiting) -> None:
        i = request.i
        prompt = int(self._trace.prompt_tokens[i])
        start = max(0, min(request.hit * self._trace.block_tokens, prompt - 1))
        seconds = self._prefill.seconds(start, prompt)
        self._hits[i] = request.hit
        self._busy = True
        self._busy_s += seconds
        self._time.after(seconds, partial(self._computed, request, prompt - start, seconds))

    def _computed(self, request: _Waiting, tokens: int, seconds: float) -> None:
        self._ttft[request.i] = self._time.now - request.arrived
        self._cache.prefilled(tokens, seconds)
        self._busy = False
        decode_s = int(self._trace.output_tokens[request.i]) / self._decode_rate
        self._time.after(decode_s, partial(self._depart, request))
        self._store(request.name, request.keys, _OFFER_AGAIN_S)
        self._schedule()

    def _store(self, name: str, keys: Sequence[BlockKey], again_s: float) -> None:
        """Store what has room; offer the rest again, ever more rarely, until the request leaves."""
        plan = self._cache.plan_store(name, keys)
        if plan.keys:
            over = self._down.take(self._time.now, len(plan.keys) * self._chunk_nbytes)
            self._time.at(over, partial(self._cache.finish, plan.plan_id))
        if plan.no_room:
            self._time.after(again_s, partial(self._store, name, plan.no_room, 2 * again_s))

    def _depart(self, request: _Waiting) -> None:
        self._cache.depart(request.name)
        follower = self._next.get(request.i)
        if follower is not None and not np.isnan(self._trace.think_s[follower]):
            think = float(self._trace.think_s[follower])
            self._time.after(think, partial(self._arrive, follower))

    def _sample(self) -> None:
        if self._time.now >= self._sample_at:
            self._sample_at = self._time.now + self._sample_every
            used = {tier.name: tier.used for tier in self._cache.stats().tiers}
            self._samples.append(Moment(at_s=self._time.now, used=used))


def successors(trace: Trace) -> dict[int, int]:
    """Return for each request of a session with thinking times the one that follows it."""
    following: dict[int, int] = {}
    last: dict[int, int] = {}
    thinking = set(trace.session[~np.isnan(trace.think_s)].tolist()) - {NO_SESSION}
    for i, session in enumerate(trace.session.tolist()):
        if session in thinking:
            if session in last:
                following[last[session]] = i
            last[session] = i
    return following
