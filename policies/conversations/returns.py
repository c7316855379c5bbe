"""When what was used comes back: one survival curve per class, learned as it happens.

Idle time falls into bins, each longer than the one before. Of what reached a bin, the share that came back in it
estimates the chance (Kaplan and Meier, 1958), so that what has not come back yet counts too.
"""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from itertools import count, pairwise

# Seconds; the last bin, from 51 min on, is open.
_EDGES = (0.0, *(3 * 2 ** (i / 2) for i in range(21)))
_ENDS = _EDGES[1:]
_BINS = len(_EDGES)
_WIDTHS = (*(b - a for a, b in pairwise(_EDGES)), _EDGES[-1])
_PRIOR = 8.0  # what all classes have in common counts like so many of a class's own
_GUESS = 0.02  # returns per bin before anything is known: the older, the less likely
_EVERY = 32  # uses between two fits
_MOVES = 1024  # from bin to bin per fit: more than so many uses cause
_WATCHED = 1 << 16  # uses that are waited for at a time


@dataclass(slots=True, eq=False)
class Watched:
    """Something that is used now and then."""

    kind: int = 0  # its class
    last_s: float = -1.0  # its last use; negative: given up, or not used yet
    bin: int = 0
    level: int = 0  # of its priority
    number: int = field(default_factory=count(1).__next__)


@dataclass(slots=True)
class _Curve:
    reached: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    returned: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    worth: list[float] = field(default_factory=lambda: [0.0] * _BINS)

    def exposed(self) -> list[float]:
        """Count what went through each bin; what is still inside counts half."""
        after = (*self.reached[1:], 0.0)
        each = zip(self.reached, self.returned, after, strict=True)
        return [(reached + back + on) / 2 for reached, back, on in each]


class ReturnTimes:
    """The worth of waiting: returns to expect per second of holding, as of the best time to stop.

    That is the Gittins index of a hold that may be ended at any time (Gittins, 1979): of all horizons, the
    largest chance of a return within it per expected time until the return or the horizon.
    """

    def __init__(self, kinds: int) -> None:
        self._curves = [_Curve() for _ in range(kinds)]
        self._inside: list[deque[tuple[Watched, float]]] = [deque() for _ in range(_BINS)]
        self._uses = 0
        self._fitted = -_EVERY

    def used(self, watched: Watched, kind: int, now: float) -> None:
        """Note a use; the next one is waited for, as of class `kind`."""
        if watched.last_s >= 0:
            self._catch_up(watched, now)
            self._curves[watched.kind].returned[watched.bin] += 1
        watched.kind, watched.last_s, watched.bin = kind, now, 0
        self._curves[kind].reached[0] += 1
        self._inside[0].append((watched, now))
        self._uses += 1
        if sum(map(len, self._inside)) > _WATCHED:
            oldest = next(inside for inside in reversed(self._inside) if inside)
            oldest.popleft()[0].last_s = -1.0

    def index(self, kind: int, idle_s: float) -> float:
        """Return the worth of keeping what was used so long ago, as of the last `fit`."""
        worth = self._curves[kind].worth
        i = bisect_right(_EDGES, idle_s) - 1
        if i < 0:
            return worth[0]
        if i == _BINS - 1:
            return worth[i]
        part = (idle_s - _EDGES[i]) / _WIDTHS[i]
        return worth[i] + (worth[i + 1] - worth[i]) * part

    def fit(self, now: float) -> None:
        """Learn from what happened since the last fit, if that is worth it."""
        if self._uses - self._fitted < _EVERY:
            return
        self._fitted = self._uses
        self._age(now)
        exposed = [curve.exposed() for curve in self._curves]
        back = map(sum, zip(*(curve.returned for curve in self._curves), strict=True))
        every = map(sum, zip(*exposed, strict=True))
        common = [(b + _GUESS) / (n + 1) for b, n in zip(back, every, strict=True)]
        for curve, of in zip(self._curves, exposed, strict=True):
            each = zip(curve.returned, of, common, strict=True)
            curve.worth = _indices([min(1.0, (b + _PRIOR * p) / (n + _PRIOR)) for b, n, p in each])

    def _age(self, now: float) -> None:
        """Move on what has been idle long enough for the next bin, as much as is quick; from the last it is not moved."""
        moves = _MOVES
        for i, end in enumerate(_ENDS):
            inside, after = self._inside[i], self._inside[i + 1]
            while inside and moves and now - inside[0][1] >= end:
                moves -= 1
                watched, since = inside.popleft()
                if (watched.last_s, watched.bin) == (since, i):  # of two uses at one time, once
                    self._next_bin(watched)
                    after.append((watched, since))

    def _catch_up(self, watched: Watched, now: float) -> None:
        while watched.bin < len(_ENDS) and now - watched.last_s >= _ENDS[watched.bin]:
            self._next_bin(watched)

    def _next_bin(self, watched: Watched) -> None:
        watched.bin += 1
        self._curves[watched.kind].reached[watched.bin] += 1


def _indices(chances: list[float]) -> list[float]:
    """Return the index at the start of each bin, given the chance of a return in each.

    From the last bin on: a horizon is worth to be extended by the best one that begins where it ends, as long as that
    is better than the horizon itself.
    """
    indices: list[float] = []
    later: list[
        tuple[float, float, float]
    ] = []  # best horizons: returns, time held, chance of neither
    for chance, width in zip(reversed(chances), reversed(_WIDTHS), strict=True):
        back, held, here = chance, width * (1 - chance / 2), 1 - chance
        while later and later[-1][0] * held > back * later[-1][1]:
            more_back, more_held, more_here = later.pop()
            back += here * more_back
            held += here * more_held
            here *= more_here
        later.append((back, held, here))
        indices.append(back / held)
    indices.reverse()
    return indices
