"""What one server did while it was looked at."""

import time
from collections.abc import Callable
from typing import NamedTuple

from kvtier.errors import KvtierError
from kvtier.top.facts import Facts, facts
from kvtier.top.scrape import Scrape, fetch

MOST_LOOKS = 400
WINDOW_S = 60.0


class Step(NamedTuple):
    """What happened from one look to the next."""

    at: float  # its end, seconds since 1970
    facts: Facts


class History:
    """The looks at one server; past MOST_LOOKS every second one is forgotten, so that old times get coarse, and none is lost.

    One thread looks; another may ask.
    """

    def __init__(self, address: str, fetch: Callable[[str], Scrape] = fetch) -> None:
        self.address = address
        self.why = ""  # why the last look found nothing
        self.steps: tuple[Step, ...] = ()  # replaced, never changed
        self._looks: list[tuple[float, Scrape]] = []
        self._fetch = fetch

    def look(self) -> None:
        """Scrape it now."""
        try:
            scrape = self._fetch(self.address)
        except KvtierError as exc:
            self.why = str(exc)
            return
        self.why = ""
        looks = [*self._looks, (time.time(), scrape)]
        if len(looks) > MOST_LOOKS:
            looks = [*looks[:-1:2], looks[-1]]
            self.steps = tuple(map(_step, looks, looks[1:]))
        elif len(looks) > 1:
            self.steps += (_step(looks[-2], looks[-1]),)
        self._looks = looks

    def facts(self, *, whole: bool = False) -> Facts | None:
        """Say what the last minute, or the `whole` life of the server, was; rates are of the last two looks.

        None where the last look found nothing.
        """
        if self.why or not self._looks:
            return None
        *before, (_, now) = self._looks
        if not before:
            return facts(now)
        return facts(now, None if whole else self._a_minute_ago(), before[-1][1])

    def recorded(self) -> Facts | None:
        """Say what happened from the first look to the last; None before the second."""
        looks = self._looks
        return facts(looks[-1][1], looks[0][1]) if len(looks) > 1 else None

    def _a_minute_ago(self) -> Scrape:
        """Give the newest look that is a minute old, or the first one."""
        *before, (_, now) = self._looks
        old = [scrape for _, scrape in before if now.at - scrape.at >= WINDOW_S]
        return old[-1] if old else before[0][1]


def _step(earlier: tuple[float, Scrape], later: tuple[float, Scrape]) -> Step:
    return Step(later[0], facts(later[1], earlier[1]))
