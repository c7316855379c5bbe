"""The prefix rule, once: a base for eviction policies that only have to rank chunks.

Only leaves (chunks that nobody here continues) wait in heaps, lowest rank first; a chunk joins them when its
last child leaves. So no answer can leave a hole, whatever the ranks, and a use costs one store
into a column: a heap learns of a risen rank when the chunk comes to its top.
"""

from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvtier.facts import TierFacts
from kvtier.leftovers import Leftovers
from kvtier.policies.kit.heap import Leaf, LeafHeap
from kvtier.policy import EvictionPolicy
from kvtier.types import BlockKey

_NOWHERE = 255  # the queue of a chunk that is not here, but named as a parent
_NO_ROW = -1
_LOOKS = 64  # leaves that were spared and that a search looks at again, before it finds too few
_LEFT = 1 << 16  # removed chunks that `evicted` may still name; the first to leave is forgotten


def _nothing(key: BlockKey) -> bool:
    return False


class Aside(NamedTuple):
    """A leaf that a search took off its heap; void unless its stamp is still the row's."""

    stamp: int
    leaf: Leaf


class Gone(NamedTuple):
    """Where a chunk was when it was removed."""

    queue: int
    rank: float


class PrefixPolicy(EvictionPolicy, ABC):
    """Chunks in rows, each in one of a few queues with a rank; lower ranks leave first.

    A subclass says what a use means (`entered`, `used`: call `place`) and, if it has several queues, from
    which the next victim comes (`pick`). `left` tells `evicted` where a chunk was.
    """

    queues = 1

    def __init__(self, facts: TierFacts) -> None:
        super().__init__(facts)
        self.tick = 0.0  # counts uses: a rank for recency
        self._leftovers = Leftovers()
        self._asks = type(self).evicted is not EvictionPolicy.evicted
        self._columns: list[array[int] | array[float]] = []
        self._forget()

    def entered(self, row: int, key: BlockKey) -> None:
        """Place a chunk that is new here; by default as one that is used."""
        self.used(row, key)

    @abstractmethod
    def used(self, row: int, key: BlockKey) -> None:
        """Note one more use of a chunk, and place it again if that matters."""

    def pick(self) -> Leaf | None:
        """Take the next victim off its heap; None if there is none."""
        return self.pop(0)

    def column(self, typecode: str) -> "array[int]":
        """Make a column of numbers by row, 0 for a new chunk."""
        column = array(typecode, [0]) * len(self.keys)
        self._columns.append(column)
        return column

    def place(self, row: int, queue: int, rank: float) -> None:
        """Put a chunk into a queue at a rank."""
        old, was = self.queue[row], self.ranks[row]
        self.ranks[row] = rank
        if old != queue:
            self._move(row, old, queue)
        if not self._kids[row] and (not self._stamps[row] or rank < was):
            self._push(row)

    def peek(self, queue: int) -> Leaf | None:
        """Return the leaf of the lowest rank of a queue."""
        heap = self._heaps[queue]
        while leaf := heap.top():
            row = leaf.row
            if not self._kids[row] and self.ranks[row] <= leaf.rank:
                break
            heap.pop()
            self._stamps[row] = 0
            if not self._kids[row]:
                self._push(row)
        return leaf

    def pop(self, queue: int) -> Leaf | None:
        """Take the leaf of the lowest rank off a queue's heap."""
        leaf = self.peek(queue)
        if leaf is not None:
            self._heaps[queue].pop()
            self._stamps[leaf.row] = 0
        return leaf

    def put_back(self, leaf: Leaf) -> None:
        """Undo `pop`."""
        self._stamps[leaf.row] = leaf.stamp
        self._heaps[self.queue[leaf.row]].push(leaf)

    def row(self, key: BlockKey) -> int | None:
        """Return the row of a chunk that is here."""
        row = self._rows.get(key)
        return None if row is None or self.queue[row] == _NOWHERE else row

    def left(self, key: BlockKey) -> Gone | None:
        """Return where a chunk was when it was removed. A second call for the same chunk returns None.

        The brain removes victims in batches, so other chunks may have been removed after this one.
        """
        return self._left.pop(key, None)

    def above(self, row: int) -> Iterator[int]:
        """Walk a chunk's ancestors that are here, nearest first."""
        while (row := self._parents[row]) != _NO_ROW and self.queue[row] != _NOWHERE:
            yield row

    def insert(self, key: BlockKey, parent: BlockKey | None) -> None:
        row = self._row(key)
        if self.queue[row] != _NOWHERE:
            return
        self._left.pop(key, None)
        if parent is not None:
            above = self._row(parent)
            self._parents[row] = above
            self._kids[above] += 1
        for column in self._columns:
            column[row] = 0
        self.tick += 1
        if self._leftovers:
            self._leftovers.free(8)
        self.entered(row, key)

    def touch(self, key: BlockKey) -> None:
        row = self._rows.get(key)
        if row is not None and self.queue[row] != _NOWHERE:
            self.tick += 1
            self.used(row, key)

    def remove(self, key: BlockKey) -> None:
        row = self._rows.get(key)
        if row is None or self.queue[row] == _NOWHERE:
            return
        if self._asks:
            self._left[key] = Gone(self.queue[row], self.ranks[row])
            if len(self._left) > _LEFT:
                self._left.popitem(last=False)
        self._move(row, self.queue[row], _NOWHERE)
        above, self._parents[row] = self._parents[row], _NO_ROW
        if not self._kids[row]:
            self._free(row)
        if above != _NO_ROW:
            self._kids[above] -= 1
            self._bare(above)

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        self._look_again(self._chosen, len(self._chosen), _nothing)
        self._look_again(self._spared, _LOOKS, pinned)
        chosen, spared = self._search(n, pinned)
        for leaf in chosen:
            self.counts[self.queue[leaf.row]] += 1
            if (above := self._parents[leaf.row]) != _NO_ROW:
                self._kids[above] += 1
        self._chosen.extend(map(self._set_aside, chosen))
        self._spared.extend(map(self._set_aside, spared))
        return [self.keys[leaf.row] for leaf in chosen]

    def clear(self) -> None:
        self._leftovers.leave(self.keys, self._rows, self._left, self._chosen, self._spared)
        for heap in self._heaps:
            heap.leave(self._leftovers)
        self._forget()

    def _forget(self) -> None:
        self.keys: list[BlockKey] = []
        self.queue = array("B")
        self.ranks = array("d")
        self.counts = [0] * self.queues  # chunks per queue
        self._rows: dict[BlockKey, int] = {}
        self._left: OrderedDict[BlockKey, Gone] = OrderedDict()  # first to leave first
        self._parents = array("i")
        self._kids = array("i")
        self._stamps = array("q")  # of its entry in a heap; 0: it has none
        self._spare = array("i")
        self._stamp = 0
        self._heaps = [LeafHeap(self._stamps) for _ in range(self.queues)]
        self._chosen: deque[Aside] = deque()  # by the last search
        self._spared: deque[Aside] = deque()  # by searches, looked at longest ago first
        for column in self._columns:
            del column[:]

    def _search(self, n: int, pinned: Callable[[BlockKey], bool]) -> tuple[list[Leaf], list[Leaf]]:
        """Take victims off their heaps, as if each left at once; what was spared is looked at again if they are too few."""
        chosen: list[Leaf] = []
        spared: list[Leaf] = []
        while len(chosen) < n:
            leaf = self.pick()
            if leaf is None:
                if not self._look_again(self._spared, len(self._spared), pinned):
                    break
            elif pinned(self.keys[leaf.row]):
                spared.append(leaf)
            else:
                chosen.append(leaf)
                self._suppose_gone(leaf.row)
        return chosen, spared

    def _set_aside(self, leaf: Leaf) -> Aside:
        self._stamp += 1
        self._stamps[leaf.row] = self._stamp
        return Aside(self._stamp, leaf)

    def _look_again(self, aside: deque[Aside], n: int, pinned: Callable[[BlockKey], bool]) -> int:
        """Put back what of the next `n` leaves that were set aside is not pinned any more; return how many."""
        back = 0
        for _ in range(len(aside)):
            if not n:
                break
            each = aside.popleft()
            if self._stamps[each.leaf.row] != each.stamp:
                continue
            n -= 1
            if pinned(self.keys[each.leaf.row]):
                aside.append(each)
            else:
                back += 1
                self.put_back(each.leaf)
        return back

    def _suppose_gone(self, row: int) -> None:
        self.counts[self.queue[row]] -= 1
        if (above := self._parents[row]) != _NO_ROW:
            self._kids[above] -= 1
            if not self._kids[above] and self.queue[above] != _NOWHERE and not self._stamps[above]:
                self._push(above)

    def _row(self, key: BlockKey) -> int:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._spare.pop() if self._spare else self._grow()
            self.keys[row] = key
        return row

    def _grow(self) -> int:
        self.keys.append(BlockKey(b""))
        self.queue.append(_NOWHERE)
        self.ranks.append(0)
        self._parents.append(_NO_ROW)
        self._kids.append(0)
        self._stamps.append(0)
        for column in self._columns:
            column.append(0)
        return len(self.keys) - 1

    def _free(self, row: int) -> None:
        del self._rows[self.keys[row]]
        self.keys[row] = BlockKey(b"")
        self._spare.append(row)

    def _bare(self, row: int) -> None:
        """Note that a chunk may have lost its last child: it is a leaf now, or nobody names it any more."""
        if self._kids[row]:
            return
        if self.queue[row] == _NOWHERE:
            self._free(row)
        elif not self._stamps[row]:
            self._push(row)

    def _move(self, row: int, old: int, queue: int) -> None:
        if old != _NOWHERE:
            self.counts[old] -= 1
            self._void(row)
        if queue != _NOWHERE:
            self.counts[queue] += 1
        self.queue[row] = queue

    def _push(self, row: int) -> None:
        self._void(row)
        self._stamp += 1
        self._stamps[row] = self._stamp
        self._heaps[self.queue[row]].push(Leaf(self.ranks[row], self._stamp, row))

    def _void(self, row: int) -> None:
        """Let the entry that a row has be void."""
        if self._stamps[row]:
            self._stamps[row] = 0
            self._heaps[self.queue[row]].voided()
