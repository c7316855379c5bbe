"""Virtual time: what happens when."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Timeline:
    """A clock that jumps from event to event; equal times run in the order they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Let something happen, now at the earliest."""
        heappush(self._events, (max(when, self.now), next(self._order), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        self.at(self.now + seconds, what)

    @property
    def pending(self) -> bool:
        """Whether anything is to happen."""
        return bool(self._events)

    def step(self) -> bool:
        """Run the next event; return whether there was one."""
        if not self._events:
            return False
        self.now, _, what = heappop(self._events)
        what()
        return True
