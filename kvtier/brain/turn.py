"""Who waits for room: one request at a time may hold slots and wait for more, all others hold nothing meanwhile.

Whoever waits, waits for something that is under way. When nothing is, nobody waits any more.
"""

from collections.abc import Iterable, Mapping, Sequence

from kvtier.brain.budgets import Budgets
from kvtier.brain.lower_tier import LowerTier
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.types import TIER0, BlockKey, Priority

_LEAST_WAVE = 16  # of the slots: smaller waves cost more looks at the whole hit than they are worth
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.01, 0.64


class Turns:
    """Says who may hold slots and wait for more, and whether anything is under way that will make room.

    The role is free again at the next step only: then the requests are asked in the engine's order, and the first
    that lacks room has it.
    """

    def __init__(self, state: State, budgets: Budgets) -> None:
        self.holder: Request | None = None
        self._state = state
        self._budgets = budgets
        self._vacant = True
        self._quiet = False  # nothing was under way at the last step, nobody waits

    @property
    def least_wave(self) -> int:
        """Chunks of a wave that others follow, at least."""
        return max(1, self._state.residency.slots.n // _LEAST_WAVE)

    @property
    def under_way(self) -> bool:
        """Whether a read, a copy or a write that a slot waits for is under way, and not late."""
        state = self._state
        return (
            bool(state.copies)
            or any(low.reads.in_time or low.reads.ahead for low in state.lowers)
            or bool(state.residency.leaving and not any(low.stalled for low in state.lowers))
        )

    @property
    def moving(self) -> bool:
        """Whether it is worth to wait. What ended a moment ago counts: whoever has it now may be asked yet."""
        return not self._quiet or self.under_way

    def may_hold(self, request: Request) -> bool:
        """Whether a request may hold slots and wait for more."""
        return self._vacant if self.holder is None else self.holder is request

    def hold(self, request: Request) -> None:
        """Let a request hold slots and wait for more."""
        assert self.may_hold(request)
        self.holder, self._vacant = request, False

    def release(self, request: Request) -> None:
        """Note that a request waits for no more room."""
        if self.holder is request:
            self.holder = None

    def wait(
        self,
        request: Request,
        keys: Sequence[BlockKey],
        reads: Mapping[LowerTier, int],
        *,
        whole: bool,
    ) -> "Turn":
        """Let a request wait for the room to read `keys`, so many from each tier; it may begin with a wave, or not."""
        self._quiet = False
        if whole:
            reads = {lower: min(n, self._budgets.most(lower)) for lower, n in reads.items()}
        return Turn(self._state, self._budgets, self, request, keys, reads, whole)

    def silent(self, request: Request, lowers: Iterable[LowerTier]) -> bool:
        """Whether a request holds slots, and got nothing from these tiers for a deadline."""
        if self.holder is not request:
            return False
        deadline_s = max(lower.spec.deadline_s for lower in lowers)
        return request.silent(self._state.clock(), deadline_s)

    def reserved(self, request: Request) -> int:
        """Return the slots that others may not take before the holder's next wave."""
        holder = self.holder
        waits = holder is not None and holder is not request and isinstance(holder.reading, Turn)
        return self.least_wave if waits else 0

    def tick(self) -> None:
        """End a step; where nothing is under way, nobody waits any more."""
        self._vacant = self.holder is None
        was_quiet, self._quiet = self._quiet, not self.under_way
        if self._quiet and not was_quiet:
            for request in self.waiting():
                request.give_up()

    def waiting(self) -> list[Request]:
        """List who waits for room, in a pass over all requests."""
        requests = self._state.requests.values()
        return [request for request in requests if isinstance(request.reading, Turn)]

    def clear(self) -> None:
        """Forget who holds."""
        self.holder, self._vacant = None, True


class Turn:
    """The wait of one request for slots and for the budgets of the tiers that it reads from."""

    def __init__(
        self,
        state: State,
        budgets: Budgets,
        turns: Turns,
        request: Request,
        keys: Sequence[BlockKey],
        reads: Mapping[LowerTier, int],
        whole: bool,
    ) -> None:
        self.left = set(keys)
        self._whole = whole
        self._state = state
        self._budgets = budgets
        self._turns = turns
        self._request = request
        self._reads = reads
        pause_s = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2**request.tries)
        self._not_before = state.clock() + pause_s  # what looks like room must be made first

    def over(self) -> bool:
        """Whether there is room now, or no reason to wait for any; then the request asks again. O(1)."""
        over = self._is_over()
        if over:
            self._request.give_up()
        return over

    def _is_over(self) -> bool:
        now, turns, request = self._state.clock(), self._turns, self._request
        if request.impatient(now) or not turns.moving or turns.silent(request, self._reads):
            return True
        return now >= self._not_before and self._has_room()

    def _has_room(self) -> bool:
        residency, request = self._state.residency, self._request
        needed, most = sum(self._reads.values()), None
        if not self._whole and self._turns.may_hold(request):
            needed = most = min(needed, self._turns.least_wave)
        unpinned = residency.chunks[TIER0] - len(residency.pins)
        room = min(residency.slots.free + unpinned, self._budgets.spare)
        if room < needed + self._turns.reserved(request):
            return False
        for lower, n in self._reads.items():
            if self._budgets.left(lower, Priority.DEMAND) < (n if most is None else min(n, most)):
                return False
        return True
