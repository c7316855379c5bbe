"""When the ranks look at their live weights, and what their answers mean.

1. A look is ordered with a step, and every rank takes it before the step computes. Only a step that computes has one,
   or one in which vLLM asked for a hit: then vLLM may compute too, so no weight is unmapped (asleep, they are).
2. Of two looks of a rank that differ, the later one says: the weights were changed. The ranks' answers are OR-ed, once
   all have answered.
3. After a call that may have changed weights, after a reset, and after the device's cache was emptied, the next step that
   may look looks. Otherwise a step looks after 5 s; after a change every second, until two looks agree.
4. A hit is given only if all ranks have answered the look of 3, and a look of the last 10 s. Else the request waits
   for a step or two, in which the ranks look: 5 s at most, then it computes.
5. After a reset of kvtier the next look is what later ones are compared with, whatever was seen before.
"""

import time
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import NamedTuple

PERIOD_S = 5.0
UNSETTLED_S = 1.0
TRUST_S = 10.0
WAIT_S = 5.0


class Trust(Enum):
    """Whether a hit may be given now."""

    YES = auto()
    WAIT = auto()  # ask again in a step or two
    NO = auto()  # ranks that were asked do not answer


class Looked(NamedTuple):
    """What one rank saw; look 0 is of before the engine began to serve."""

    rank: int
    look: int
    digest: bytes


class Change(NamedTuple):
    """Weights were changed in place."""

    ranks: tuple[int, ...]
    emptied: bool  # the device holds nothing that is older than the change

    def __str__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        said = f"weights were changed in place (on rank {ranks}): nothing of before is used"
        return said if self.emptied else f"{said}, nothing stored until the device's cache is reset"


class Looks:
    """Orders looks and compares answers. EngineCore's main thread only; no call costs more than a few comparisons."""

    def __init__(self, ranks: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ranks = ranks
        self._clock = clock
        self._seen: dict[int, Looked] = {}  # by rank: its last answer
        self._changed: dict[int, int] = {}  # by rank: the look that saw it, until it is told
        self._sent = 0
        self._sent_at: dict[int, float] = {}  # of the looks that not all ranks have answered
        self._answered = 0
        self._answered_at = -TRUST_S  # when it was ordered
        self._needed = 1  # the look without which no hit is given
        self._wanted = 0  # the last look that somebody asked for
        self._base = 0  # the first look after the last reset of kvtier
        self._emptied = 1  # the first look after the device's cache was emptied
        self._period = PERIOD_S
        self._asked = False

    @property
    def next(self) -> int:
        """The number of the next look."""
        return self._sent + 1

    @property
    def answered(self) -> int:
        """The last look that all ranks have answered."""
        return self._answered

    def want(self) -> None:
        """Let the step that is being made have a look, whose answer only one request waits for."""
        self._wanted, self._asked = self._sent + 1, True

    def suspect(self, *_: object) -> None:
        """Note that weights may have been changed: the workers were called."""
        self._needed = self._sent + 1

    def emptied(self) -> None:
        """Note that the device's cache was emptied: people do that after they have changed weights."""
        self._emptied = self._sent + 1
        self.suspect()

    def forgotten(self) -> None:
        """Note that kvtier was reset: of before nothing is left."""
        self._base = self._sent + 1
        self._changed.clear()
        self.suspect()

    def trust(self) -> Trust:
        """Say whether a hit may be given. If not, the step that is being made has a look."""
        now = self._clock()
        fresh = self._answered >= self._needed and now - self._answered_at <= TRUST_S
        if fresh and not self._changed:
            return Trust.YES
        self._asked = True
        pending = self._sent_at.get(self._sent, now)
        return Trust.NO if WAIT_S < now - pending < TRUST_S else Trust.WAIT

    def order(self, *, computes: bool) -> int:
        """End the making of a step: give the number of the look that goes with it; 0: none."""
        may, self._asked = computes or self._asked, False
        if not may or not self._due():
            return 0
        self._sent += 1
        self._sent_at[self._sent] = self._clock()
        return self._sent

    def heard(self, answers: Iterable[Looked]) -> None:
        """Take what ranks saw."""
        for answer in answers:
            before = self._seen.get(answer.rank)
            self._seen[answer.rank] = answer
            if before and before.look >= self._base and before.digest != answer.digest:
                self._changed[answer.rank] = answer.look
        if len(self._seen) < self._ranks:
            return
        answered = min(seen.look for seen in self._seen.values())
        if answered > self._answered:
            self._answered, self._answered_at = answered, self._sent_at[answered]
            self._sent_at = {n: at for n, at in self._sent_at.items() if n > answered}
            self._period = UNSETTLED_S if self._changed else PERIOD_S

    def take_change(self) -> Change | None:
        """Tell a change once, as soon as all ranks have answered."""
        if not self._changed or self._answered < max(self._changed.values()):
            return None
        emptied = max(self._changed.values()) <= self._emptied
        change = Change(tuple(sorted(self._changed)), emptied)
        self._changed.clear()
        return change

    def _due(self) -> bool:
        if max(self._needed, self._wanted) > self._sent:
            return True
        now = self._clock()
        if (pending := self._sent_at.get(self._sent)) is not None:
            return now - pending >= TRUST_S
        return now - self._answered_at >= self._period
