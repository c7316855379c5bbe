"""Least recently used, tail of the prefix first."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from kvtier.facts import RequestFacts, TierFacts
from kvtier.leftovers import Leftovers
from kvtier.policy import EvictionPolicy
from kvtier.types import BlockKey

_MOST = 256  # singles in one run


class Run(list[BlockKey]):
    """Chunks that were used last at the same time, each continuing the one before it; the last leaves first."""

    __slots__ = ()
    __eq__ = object.__eq__  # a run is itself, whatever is in it
    __hash__ = object.__hash__  # type: ignore[assignment]

    def oldest_first(self) -> Iterable[BlockKey]:
        """Walk the chunks in the order in which they leave."""
        return reversed(self)


class Stem(Run):
    """What several go on from, or did: no run that a use ended in goes on growing."""

    __slots__ = ()


class Singles(Run):
    """Chunks that came one after the other, and continue nothing: each on its own, the first leaves first."""

    __slots__ = ()

    def oldest_first(self) -> Iterable[BlockKey]:
        return self


class LruPolicy(EvictionPolicy):
    """Runs, least recently used first, each before the run of the chunk that it continues.

    Using a chunk uses all that it continues, so that whole runs are moved, and spared. A use that ends within a run
    cuts it in two.
    """

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._leftovers = Leftovers()
        self._forget()

    def clear(self) -> None:
        self._leftovers.leave(self._order, *self._runs)
        self._forget()

    def _forget(self) -> None:
        # By the first byte of the key: one dict of a million keys stops the engine whenever it grows.
        self._runs: list[dict[BlockKey, Run]] = [{} for _ in range(256)]
        # The chunk that each continues, which need not be here.
        self._order: OrderedDict[Run, BlockKey | None] = OrderedDict()
        self._latest: set[Run] = set()  # the runs of the prefix that was used last
        self._fresh = Run()  # what comes tail first, and is not in order yet
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
        if self._fresh and key != self._parent:
            self._settle()
        runs = self._runs[key[0]]
        if key in runs:
            return
        run = self._fresh
        if run or parent is not None:
            self._parent = parent
        else:
            run = self._youngest_singles()
        run.append(key)
        runs[key] = run

    def insert_all(self, keys: Sequence[BlockKey], parents: Sequence[BlockKey | None]) -> None:
        if self._fresh and keys[:1] != [self._parent]:
            self._settle()
        by_byte, fresh = self._runs, self._fresh
        if not keys or parents[0] is None or parents[:-1] != keys[1:]:
            super().insert_all(keys, parents)
            return
        for i, key in enumerate(keys):  # one prefix, tail first
            runs = by_byte[key[0]]
            if key in runs:
                fresh += keys[:i]
                self._parent = key if i else self._parent
                super().insert_all(keys[i:], parents[i:])
                return
            runs[key] = fresh
        fresh += keys
        self._parent = parents[-1]

    def touch(self, key: BlockKey) -> None:
        if self._fresh:
            self._settle()
        run = self._runs[key[0]].get(key)
        if run is not None and run not in self._latest:
            self._latest.clear()
            self._use(key)

    def remove(self, key: BlockKey) -> None:
        run = self._runs[key[0]].pop(key, None)
        if run is None:
            return
        if run[-1] != key or run is self._fresh:
            self._take_out(run, key)
            return
        run.pop()
        if not run:
            del self._order[run]

    def remove_all(self, keys: Sequence[BlockKey]) -> None:
        by_byte, i = self._runs, 0
        while i < len(keys):
            run = by_byte[keys[i][0]].get(keys[i])
            n = min(len(run), len(keys) - i) if run else 0
            if not run or run is self._fresh or keys[i : i + n] != run[: -n - 1 : -1]:
                self.remove(keys[i])
                i += 1
                continue
            for key in keys[i : i + n]:  # as they leave: the end of a run, or all of it
                del by_byte[key[0]][key]
            del run[-n:]
            if not run:
                del self._order[run]
            i += n

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        if self._fresh:
            self._settle()
        chosen: list[BlockKey] = []
        spared: set[BlockKey | None] = set()
        if n <= 0:
            return chosen
        for run, above in self._order.items():
            for key in run.oldest_first():
                if key in spared or pinned(key):
                    spared.add(above)
                    if type(run) is Singles:
                        continue
                    break
                chosen.append(key)
                if len(chosen) == n:
                    return chosen
        return chosen

    def _here(self, keys: Sequence[BlockKey]) -> int:
        """Count the chunks at the start of a prefix that are here, by bisection: it has no holes, as a rule."""
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            key = keys[middle]
            if key in self._runs[key[0]]:
                low = middle + 1
            else:
                high = middle
        return low

    def _youngest_singles(self) -> Run:
        """Return where the next chunk goes that continues nothing."""
        run = next(reversed(self._order), None)
        if type(run) is not Singles or len(run) >= _MOST:
            run = Singles()
            self._order[run] = None
            self._latest.clear()
            self._leftovers.free(_MOST * 4)
        return run

    def _settle(self) -> None:
        """Let what came be a run, or go on with the one that ends with its parent, and use it."""
        run, above = self._fresh, self._parent
        self._fresh, self._parent = Run(), None
        run.reverse()
        last = run[-1]
        home = self._runs[above[0]].get(above) if above else None
        if type(home) is Singles and above:
            home = self._cut(home, above)
        if type(home) is Run and home[-1] == above:
            self._own(run, home)
            home += run
        else:
            self._order[run] = above
        self._latest.clear()
        self._use(last)
        if self._leftovers:
            self._leftovers.free(len(run) * 4)

    def _use(self, key: BlockKey | None) -> None:
        """Move the runs of a prefix to the young end; the runs are as many as branches and uses left of it."""
        while key is not None:
            run = self._runs[key[0]].get(key)
            if run is None:
                return
            if run[-1] != key or type(run) is Singles:
                run = self._cut(run, key)
            self._order.move_to_end(run)
            self._latest.add(run)
            key = self._order[run]

    def _cut(self, run: Run, key: BlockKey) -> Run:
        """Make a run of what ends with a chunk; what continues that stays in its place."""
        if type(run) is Singles:
            upper = Run((key,))
            self._order[upper] = None
            self._runs[key[0]][key] = upper
            self._take_out(run, key)
            return upper
        end = run.index(key) + 1
        upper = Stem(run[:end])
        del run[:end]
        self._order[upper] = self._order[run]
        self._order[run] = key
        self._own(upper, upper)
        return upper

    def _take_out(self, run: Run, key: BlockKey) -> None:
        """Take a chunk out of the middle; what it continues counts as used: it has no place between two runs."""
        if run is self._fresh:
            self._runs[key[0]][key] = run
            self._settle()
            self.remove(key)
        elif type(run) is Singles:
            run.remove(key)
            if not run:
                del self._order[run]
        else:
            self._latest.clear()
            if run[0] != key:
                self._use(run[run.index(key) - 1])
            del run[0]
            self._order[run] = key

    def _own(self, keys: Iterable[BlockKey], run: Run) -> None:
        for key in keys:
            self._runs[key[0]][key] = run
