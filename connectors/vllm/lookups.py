"""Who in the queue is looked up in a step, so that a burst costs every step a little and none of them much.

1. A request that waits for a copy or a load under way is not looked up again before one has ended, or before the
   device's own cache holds another part of it.
2. The lookups of a step take 2 ms, or a tenth of the last step if that is longer, or as long as vLLM itself has spent
   on the queue in this step: who is turned away costs it the same again in the next one. Who comes later is asked for
   again then: nobody waits for anything but its turn.
3. Who was never looked up has half of that time for itself. Of both kinds at least one is looked up in every step, so
   that neither starves.
"""

import time
from collections.abc import Callable

_LEAST_S = 2e-3
_SHARE = 0.1  # of the last step


class Lookups:
    """Answers for vLLM's queue, in its order. EngineCore's main thread only."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, int] | None] = {}  # what "not yet" of each hangs on
        self._ended = 0
        self._budget_s = _LEAST_S
        self._spent_s = self._began = self._ordered = self._output = 0.0
        self._since: float | None = None  # the first lookup of this step
        self._looked = {True: 0, False: 0}  # in this step, of those that were seen before or not
        self._turned_away = self._crowded = False  # a request that was never seen; in the last step

    def waits(self, request: str, computed: int) -> bool:
        """Whether a request with so many tokens on the device is not looked up now; else its lookup begins."""
        seen = request in self._seen
        if seen and self._seen[request] == (self._ended, computed):
            return True
        now = self._clock()
        if self._since is None:
            self._since = now
        budget_s = max(self._budget_s, now - self._since - self._spent_s)
        limit_s = budget_s / 2 if seen and self._crowded else budget_s
        if self._spent_s >= limit_s and self._looked[seen]:
            self._turned_away |= not seen
            return True
        self._looked[seen] += 1
        self._began = now
        return False

    def looked(self, request: str, computed: int, *, deferred: bool) -> None:
        """Note the end of a lookup, and whether it is `deferred` until a copy or a load ends."""
        self._spent_s += self._clock() - self._began
        self._seen[request] = (self._ended, computed) if deferred else None

    def ended(self) -> None:
        """Note that copies or loads have ended."""
        self._ended += 1

    def forget(self, request: str) -> None:
        """Forget a request."""
        self._seen.pop(request, None)

    def ordered(self) -> None:
        """End a step's lookups: it is ordered now."""
        self._ordered, self._spent_s, self._since = self._clock(), 0.0, None
        self._looked = {True: 0, False: 0}
        self._crowded, self._turned_away = self._turned_away, False

    def output(self) -> None:
        """Note that a step's output has come."""
        now = self._clock()
        self._budget_s = max(_LEAST_S, _SHARE * (now - max(self._ordered, self._output)))
        self._output = now
