"""Shared prefixes: where lineages parted, each lives by its own uses."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.policies.conversations.returns import Watched
from kvtier.types import BlockKey

FORK_KINDS = 2
_LIMIT = 1 << 16  # the least recently used is forgotten


@dataclass(slots=True, eq=False)
class Fork(Watched):
    """The chunk at which lineages parted; it stands for what is above it, up to the next fork."""

    uses: int = 0

    def next_kind(self) -> int:
        """Return its class: used by one lineage more, or by several."""
        return int(self.uses > 1)


class Forks:
    """The forks by their chunks."""

    def __init__(self) -> None:
        self._forks: OrderedDict[BlockKey, Fork] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._forks

    def use(self, key: BlockKey) -> Fork | None:
        """Return the fork at a chunk, if there is one, and count a use of it."""
        fork = self._forks.get(key)
        if fork is not None:
            fork.uses += 1
            self._forks.move_to_end(key)
        return fork

    def add(self, key: BlockKey) -> None:
        """Note that lineages part here."""
        self._forks[key] = Fork()
        if len(self._forks) > _LIMIT:
            self._forks.popitem(last=False)

    def depth(self, keys: Sequence[BlockKey]) -> int:
        """Return how many chunks of a prefix are known to be shared."""
        for i in range(len(keys), 0, -1):
            if keys[i - 1] in self._forks:
                return i
        return 0
