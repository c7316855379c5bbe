"""What requests hold of tier 0: the chunks of a hit, pinned from when it is promised until it is copied."""

from collections.abc import Sequence

from kvtier.brain.demotion import Demotion
from kvtier.brain.notifier import Notifier
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.hook import HookKind
from kvtier.types import TIER0, BlockKey


class Holds:
    """Pins hits, and counts each chunk of them once."""

    def __init__(self, state: State, notifier: Notifier, demotion: Demotion) -> None:
        self._state = state
        self._notifier = notifier
        self._demotion = demotion

    def hold(self, request: Request, keys: list[BlockKey]) -> None:
        """Pin `keys` instead of what the request held before."""
        residency = self._state.residency
        residency.rescue(keys)
        residency.pin(keys)
        residency.unpin(request.hold(keys))

    def give(self, request: Request, keys: Sequence[BlockKey], coming: int = 0) -> None:
        """Note that what a request holds is its hit; so many chunks of it have not landed yet."""
        state = self._state
        state.residency.touch(request, keys)
        self._notifier.accessed(request, keys)
        state.ahead.used(keys)
        counted, below = request.give(len(keys))
        fresh = keys[counted:]
        state.hooks.tell(HookKind.HIT, TIER0, fresh)
        state.arena.hits += max(0, len(fresh) - below - coming)
        self._demotion.reused(state.residency.hit(fresh))
