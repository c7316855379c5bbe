"""Calls the user's hooks, so that nothing they do harms."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from kvtier.facts import TierFacts
from kvtier.hook import Hook, HookEvent, HookKind, HookSet
from kvtier.types import BlockKey

logger = logging.getLogger(__name__)


class Called:
    """One hook and its failures."""

    def __init__(self, hook: Hook, limits: HookSet, timer: Callable[[], float]) -> None:
        self.failures = 0
        self._hook = hook
        self._limits = limits
        self._timer = timer

    @property
    def disabled(self) -> bool:
        """Whether it failed too often to be called again."""
        return self.failures >= self._limits.max_failures

    def agrees(self, event: HookEvent) -> bool:
        """Call the hook; return whether it does not object."""
        if self.disabled:
            return True
        started = self._timer()
        try:
            agreed = self._hook(event) is not False
        except (Exception, SystemExit) as exc:
            self._failed(event, f"raised {exc!r}")
            return True
        seconds = self._timer() - started
        if seconds > self._limits.budget_s:
            self._failed(event, f"took {1e3 * seconds:.1f} ms")
        return agreed

    def _failed(self, event: HookEvent, what: str) -> None:
        self.failures += 1
        if self.failures == 1 or self.disabled:
            end = "; it is called no more" if self.disabled else ""
            logger.warning("hook %s %r %s%s", event.kind, self._hook, what, end)


class Hooks:
    """All hooks of one brain; those without a hook cost one dictionary access."""

    def __init__(
        self,
        limits: HookSet,
        names: Sequence[str],
        views: Sequence[TierFacts],
        end_of: Callable[[BlockKey], int],
        *,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take the tiers' names and facts, and what tells the end of a chunk, for the events."""
        self.vetoes = 0  # insertions and evictions refused
        self.max_vetoes = limits.max_vetoes
        self._names = names
        self._views = views
        self._end_of = end_of
        self._called = {
            kind: [Called(hook, limits, timer) for hook in hooks]
            for kind, hooks in limits.hooks.items()
            if hooks
        }

    @property
    def failures(self) -> int:
        """How often hooks raised or were too slow."""
        return sum(each.failures for each in self._all())

    @property
    def disabled(self) -> int:
        """How many hooks are called no more."""
        return sum(each.disabled for each in self._all())

    def watches(self, kind: HookKind) -> bool:
        """Whether there is a hook of this kind."""
        return kind in self._called

    def tell(self, kind: HookKind, tier: int, keys: Iterable[BlockKey]) -> None:
        """Call the hooks for each key; they cannot object."""
        if called := self._called.get(kind):
            for key in keys:
                event = self._event(kind, tier, key)
                for each in called:
                    each.agrees(event)

    def agree(self, kind: HookKind, tier: int, key: BlockKey) -> bool:
        """Call the hooks; return whether none objects."""
        called = self._called.get(kind)
        if not called:
            return True
        event = self._event(kind, tier, key)
        agreed = sum(each.agrees(event) for each in called) == len(called)  # every one hears of it
        self.vetoes += not agreed
        return agreed

    def _event(self, kind: HookKind, tier: int, key: BlockKey) -> HookEvent:
        view = self._views[tier]
        nbytes, seconds = view.nbytes(key), view.seconds(key)
        return HookEvent(kind, self._names[tier], key, self._end_of(key), nbytes, seconds)

    def _all(self) -> Iterable[Called]:
        return (each for called in self._called.values() for each in called)
