"""Least recently used, tail of the prefix first."""

from collections import OrderedDict
from collections.abc import Callable

from kvtier.facts import TierFacts
from kvtier.policy import EvictionPolicy
from kvtier.types import BlockKey


class LruPolicy(EvictionPolicy):
    """An ordered dict of parents, oldest first, in which every chunk stands before its parent.

    Using a chunk owes the same to its ancestors. The debt is paid before anything else happens, and
    costs nothing if the next call is for the parent: a prefix used tail first costs one move per chunk.
    """

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self._parents: OrderedDict[BlockKey, BlockKey | None] = OrderedDict()
        self._owed: BlockKey | None = None

    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        if key in self._parents:
            return
        if key != self._owed:
            self._pay()
        self._parents[key] = parent
        self._owed = parent

    def touch(self, key: BlockKey) -> None:
        if key in self._parents:
            if key != self._owed:
                self._pay()
            self._parents.move_to_end(key)
            self._owed = self._parents[key]

    def remove(self, key: BlockKey) -> None:
        if self._owed is not None:
            self._pay()
        self._parents.pop(key, None)

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        self._pay()
        chosen: list[BlockKey] = []
        spared: set[BlockKey | None] = set()
        if n <= 0:
            return chosen
        for key in self._parents:
            if pinned(key) or key in spared:
                spared.add(self._parents[key])
            else:
                chosen.append(key)
                if len(chosen) == n:
                    break
        return chosen

    def clear(self) -> None:
        self._parents = OrderedDict()
        self._owed = None

    def _pay(self) -> None:
        """Move the ancestors that are owed a use."""
        owed, self._owed = self._owed, None
        while owed is not None and owed in self._parents:
            self._parents.move_to_end(owed)
            owed = self._parents[owed]
