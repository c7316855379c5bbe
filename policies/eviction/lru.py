"""Least recently used, tail of the prefix first."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from kvtier.facts import RequestFacts, TierFacts
from kvtier.policy import EvictionPolicy
from kvtier.types import BlockKey


class Run(list[BlockKey]):
    """Chunks that were used last at the same time, each continuing the one before it; the last leaves first."""

    __slots__ = ()
    __eq__ = object.__eq__  # a run is itself, whatever is in it
    __hash__ = object.__hash__  # type: ignore[assignment]


class Stem(Run):
    """What several go on from, or did: no run that a use ended in goes on growing."""

    __slots__ = ()


class LruPolicy(EvictionPolicy):
    """Runs, least recently used first, each before the run of the chunk that it continues.

    Using a chunk uses all that it continues, so that whole runs are moved, and spared. A use that ends within a run
    cuts it in two. A chunk alone needs no list: it stands for its run itself.
    """

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self.clear()

    def clear(self) -> None:
        self._runs: dict[BlockKey, Run] = {}  # of each chunk that is not alone
        # The chunk that each continues, which need not be here.
        self._order: OrderedDict[Run | BlockKey, BlockKey | None] = OrderedDict()
        self._latest: set[Run | BlockKey] = set()  # the runs of the prefix that was used last
        self._fresh = Run()  # what comes tail first, and is in no run yet
        self._parent: BlockKey | None = None  # of the last of these

    def arrived(self, request: RequestFacts) -> None:
        """Take it for a use: a search is not to pass all that a long queue is going to ask for."""
        for keys, _, window in request.groups:
            if window is not None:
                for key in reversed(keys[-window:]):
                    self.touch(key)
            elif here := self._here(keys):
                self.touch(keys[here - 1])

    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        fresh = self._fresh
        if fresh and key != self._parent:
            self._settle()
            fresh = self._fresh
        if key in self._runs or key in self._order:
            return
        if fresh or parent is not None:
            fresh.append(key)
            self._runs[key] = fresh
            self._parent = parent
        else:
            self._order[key] = None
            self._latest.clear()

    def touch(self, key: BlockKey) -> None:
        if self._fresh:
            self._settle()
        run = self._runs.get(key, key)
        if run not in self._latest and run in self._order:
            self._latest.clear()
            self._use(key)

    def remove(self, key: BlockKey) -> None:
        run = self._runs.pop(key, None)
        if run is None:
            self._order.pop(key, None)
        elif run[-1] == key and run is not self._fresh:
            run.pop()
            if not run:
                del self._order[run]
        else:
            self._take_out(run, key)

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        if self._fresh:
            self._settle()
        chosen: list[BlockKey] = []
        spared: set[BlockKey | None] = set()
        if n <= 0:
            return chosen
        for run, above in self._order.items():
            for key in (run,) if isinstance(run, bytes) else reversed(run):
                if key in spared or pinned(key):
                    spared.add(above)
                    break
                chosen.append(key)
                if len(chosen) == n:
                    return chosen
        return chosen

    def _here(self, keys: Sequence[BlockKey]) -> int:
        """Count the chunks at the start of a prefix that are here, by bisection: it has no holes, as a rule."""
        runs, order = self._runs, self._order
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in runs or keys[middle] in order:
                low = middle + 1
            else:
                high = middle
        return low

    def _settle(self) -> None:
        """Let what came be a run, or go on with the one that ends with its parent, and use it."""
        run, above = self._fresh, self._parent
        self._fresh, self._parent = Run(), None
        run.reverse()
        last = run[-1]
        home = self._runs.get(above) if above else None
        if type(home) is Run and home[-1] == above:
            self._runs.update(dict.fromkeys(run, home))
            home += run
        elif above is not None and above in self._order:
            self._order[run] = self._order.pop(above)
            run.insert(0, above)
            self._runs[above] = run
        elif len(run) == 1:
            del self._runs[last]
            self._order[last] = above
        else:
            self._order[run] = above
        self._latest.clear()
        self._use(last)

    def _use(self, key: BlockKey | None) -> None:
        """Move the runs of a prefix to the young end; the runs are as many as branches and uses left of it."""
        while key is not None:
            run = self._runs.get(key, key)
            if run not in self._order:
                return
            if isinstance(run, Run) and run[-1] != key:
                run = self._cut(run, key)
            self._order.move_to_end(run)
            self._latest.add(run)
            key = self._order[run]

    def _cut(self, run: Run, key: BlockKey) -> Run:
        """Make a run of what ends with a chunk; what continues that stays in its place."""
        end = run.index(key) + 1
        stem = Stem(run[:end])
        del run[:end]
        self._order[stem] = self._order[run]
        self._order[run] = key
        self._runs.update(dict.fromkeys(stem, stem))
        return stem

    def _take_out(self, run: Run, key: BlockKey) -> None:
        """Take a chunk out of the middle; what it continues counts as used: it has no place between two runs."""
        if run is self._fresh:
            self._runs[key] = run
            self._settle()
            self.remove(key)
            return
        self._latest.clear()
        if run[0] != key:
            self._use(run[run.index(key) - 1])
        del run[0]
        self._order[run] = key
