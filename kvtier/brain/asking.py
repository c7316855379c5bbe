"""Asks tiers that others use too what they have of a request, when it arrives.

Whoever waits for an answer holds nothing: no slot, no pin, no block of the device. The wait ends with the answer, or
without it; `docs/fleet.md` has the rule.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvtier.brain.groups import Place
from kvtier.brain.index import TIERS
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.operations import Operation
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.brain.why import Why
from kvtier.types import NO_SLOT, BlockKey, OpKind, TierOp

BUDGET_S = 0.1  # from when a question was handed over
_MOST_KEYS = 2048  # of one question
_MOST_PER_STEP = 4096  # keys: a question travels to every rank
_MOST_ASKS = 64  # of one tier that are not answered


@dataclass(slots=True, eq=False)
class Ask:
    """One question: how many of these chunks, in prefix order, does the tier have one after the other?"""

    lower: LowerTier
    keys: Sequence[BlockKey]
    places: Sequence[Place]
    since: float  # when it was made
    round: int | None = None  # with which it was handed over; None: it waits for that
    sent: float = 0.0  # when
    done: bool = False
    late: bool = False  # somebody went on without the answer


class Asking:
    """All questions of one brain. A late answer still teaches; a tier that is late again and again rests."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lowers = [lower for lower in state.lowers if lower.beliefs]
        # How far several groups of a prefix reach is no single number.
        specs = state.groups.specs
        self._able = len(specs) == 1 and specs[0].window_chunks is None
        self.round = 0  # of the last step with which questions were handed over
        self.handed = 0  # the round of the step that is being made; 0: nobody is asked
        self._heard = 0  # the last round whose step is over on every rank
        self.clear()

    def clear(self) -> None:
        """Forget all of them."""
        self._queue: deque[Ask] = deque()
        self._flying: dict[int, Ask] = {}
        self._keys: dict[tuple[int, BlockKey], Ask] = {}  # tier and chunk, by what asks for it
        self._open = dict.fromkeys((lower.tier for lower in self._lowers), 0)

    @property
    def waiting(self) -> bool:
        """Whether a question is to be handed over."""
        return bool(self._queue)

    def arrived(self, request: Request) -> None:
        """Ask for what no tier is known to have of a request, or join who asks for that already.

        What may not leave DRAM is nowhere else, or is somebody else's of the same name.
        """
        request.asked = True
        if self._able and request.reads and request.persist:
            for lower in self._lowers:
                if lower.serving and self._open[lower.tier] < _MOST_ASKS:
                    self._ask(request, lower)
                elif not lower.detached:
                    request.asked = False  # it is asked for later, if it still waits then

    def waits(self, name: str, computed: int) -> bool:
        """Whether a request waits for an answer that could lengthen its hit beyond `computed` tokens; O(1)."""
        request = self._state.requests.get(name)
        if request is None:
            return False
        if not request.asked and self._may_ask():
            self.arrived(request)
        if not request.asks:
            return False
        ends = (ask.places[-1].end for ask in request.asks)
        if computed < max(ends) and any(self._pends(ask, request) for ask in request.asks):
            return True
        request.asks = []
        return False

    def heard(self, number: int) -> None:
        """Note that the step of a round is over: what was handed over with it could be answered by now."""
        self._heard = max(self._heard, number)

    def tick(self) -> None:
        """Hand questions over with the step that is being made, the oldest first."""
        self.round += bool(self._queue)
        self.handed = self.round if self._queue else 0
        left = _MOST_PER_STEP
        while self._queue and left >= len(self._queue[0].keys):
            ask = self._queue.popleft()
            left -= len(ask.keys)
            operations, lower = self._state.operations, ask.lower
            ask.round, ask.sent = self.round, self._state.clock()
            number = operations.number()
            deadline_s = lower.spec.deadline_s
            op = TierOp(number, OpKind.ASK, lower.tier, deadline_s=deadline_s, keys=tuple(ask.keys))
            operations.order(op)
            self._flying[number] = ask
            lower.counters.asks += 1

    def ended(self, operation: Operation) -> None:
        """Take an answer: what it says is believed, whoever still waits for it."""
        ask = self._flying.pop(operation.op.op)
        self._close(ask)
        lower = ask.lower
        if not operation.ok:
            lower.fail(OpKind.ASK, operation.status, known=ask.late)
            return
        if not ask.late:
            lower.breaker.succeeded(OpKind.ASK)
        assert lower.beliefs
        n = min(operation.found, len(ask.keys))
        lower.beliefs.found(zip(ask.keys[:n], ask.places[:n], strict=True), lower.ops)
        if n < len(ask.keys) and ask.keys[n] not in lower.ops:
            lower.beliefs.missing(ask.keys[n])

    def check(self) -> None:
        """Assert that every question is under way, or will be.

        Raises:
            AssertionError: one is lost.
        """
        asks = {*self._queue, *self._flying.values()}
        assert all(not ask.done for ask in asks), "an answered question is under way"
        for request in self._state.requests.values():
            assert all(ask.done or ask in asks for ask in request.asks), "a question is lost"
        flying = {each.op.op for each in self._state.operations.all() if each.op.kind is OpKind.ASK}
        assert self._flying.keys() <= flying, "a question that nobody answers"
        assert sum(self._open.values()) == len(asks), "questions are miscounted"
        assert set(self._keys.values()) <= asks, "a chunk waits for an answer that came"

    def _may_ask(self) -> bool:
        """Whether a tier takes a question now."""
        return any(low.serving and self._open[low.tier] < _MOST_ASKS for low in self._lowers)

    def _ask(self, request: Request, lower: LowerTier) -> None:
        keys = deque(self._unknown(request, lower))
        while keys and (ask := self._keys.get((lower.tier, keys[0]))):
            if ask.late:
                return  # who asked went on without, and so does this one
            if ask not in request.asks:
                request.asks.append(ask)
            keys.popleft()
        if keys and self._is_worth(len(keys), lower):
            asked = list(keys)[:_MOST_KEYS]
            places = [Place(*spot) for spot in self._state.groups.spots(request, asked) if spot]
            ask = Ask(lower, asked, places, self._state.clock())
            self._open[lower.tier] += 1
            self._queue.append(ask)
            self._keys |= dict.fromkeys(((lower.tier, key) for key in asked), ask)
            request.asks.append(ask)

    def _unknown(self, request: Request, lower: LowerTier) -> Iterator[BlockKey]:
        """Walk a request's chunks behind those that some tier has, or gets now, up to one that was absent just now."""
        index = self._state.residency.index
        assert lower.beliefs
        leading = True
        for key in request.groups[0]:
            row = index.rows.get(key)
            here = row is not None and (index.flags[row] & TIERS or index.slots[row] != NO_SLOT)
            leading = leading and bool(here)
            if not leading:
                if lower.beliefs.is_absent(key):
                    return
                yield key

    def _is_worth(self, chunks: int, lower: LowerTier) -> bool:
        """Whether to compute them takes longer than a question and a read."""
        costs = self._state.costs
        tokens = chunks * self._state.groups.specs[0].chunk_tokens
        return not costs.known or tokens * costs.prefill.steady() > 2 * lower.cost.estimate(0)

    def _pends(self, ask: Ask, request: Request) -> bool:
        """Whether to wait on for an answer: it counts from the step with which it could have come."""
        if ask.done or ask.late:
            return False
        now = self._state.clock()
        if ask.round is not None and self._heard >= ask.round:
            over = now >= ask.sent + BUDGET_S
        else:
            over = now >= ask.since + ask.lower.spec.deadline_s
        if over:
            ask.late = True
            ask.lower.counters.late_asks += 1
            ask.lower.breaker.failed(OpKind.ASK)
            self._state.refuse_load(request, Why.ASKED_LATE)
        return not over

    def _close(self, ask: Ask) -> None:
        ask.done = True
        self._open[ask.lower.tier] -= 1
        for key in ask.keys:
            if self._keys.get((ask.lower.tier, key)) is ask:
                del self._keys[ask.lower.tier, key]
