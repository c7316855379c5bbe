"""What a tier that others use too is believed to hold: by its own answers, and for a while only."""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable

from kvtier.brain.groups import Place
from kvtier.brain.residency import Residency
from kvtier.types import BlockKey

PRESENT_S = 60.0  # the store may evict meanwhile: then the read is a miss
ABSENT_S = 2.0  # somebody else may write it meanwhile
_MOST = 1 << 17  # chunks that are believed to be there, about 26 MB; the oldest belief goes first
_MOST_ABSENT = 1 << 14
_SLICE = 512  # beliefs that end in one step
_WEIGHT = 0.05  # of one record in the average size


class Beliefs:
    """One tier's. A chunk that is believed to be there has the tier's bit in the index, and an end here.

    A belief may be wrong. It gives a request the hope of a hit, and never keeps anything: no slot is freed and no chunk
    is taken in because of it. It does not end while an operation on its record is under way.
    """

    def __init__(
        self, tier: int, residency: Residency, largest: int, clock: Callable[[], float]
    ) -> None:
        """Take records for `largest` bytes until some were seen."""
        self._tier = tier
        self._residency = residency
        self._largest = largest
        self._clock = clock
        self._sizes: dict[bytes, float] = {}  # of a record, by KV-cache group
        self.clear()

    def clear(self) -> None:
        """Forget all of them; the index is cleared by whoever calls this."""
        self._ends: OrderedDict[BlockKey, float] = OrderedDict()
        self._absent: OrderedDict[BlockKey, float] = OrderedDict()

    def is_absent(self, key: BlockKey) -> bool:
        """Whether the tier was found without a chunk a moment ago."""
        return self._absent.get(key, 0.0) > self._clock()

    def found(self, chunks: Iterable[tuple[BlockKey, Place]], busy: Container[BlockKey]) -> None:
        """Believe in chunks that the tier says it has; one that is `busy` gets its own answer."""
        fresh = []
        for key, place in chunks:
            if key not in busy:
                if not self._has(key):
                    fresh.append((key, place, self._size(key)))
                self._keep(key)
        self._residency.record(self._tier, fresh)
        self._shrink(busy)

    def wrote(self, key: BlockKey, place: Place, nbytes: int, busy: Container[BlockKey]) -> None:
        """Believe in a record that every rank has written, or found there already: then it has no size."""
        if nbytes:
            self._learn(key, nbytes)
        self._residency.record(self._tier, [(key, place, nbytes or self._size(key))])
        self._keep(key)
        self._shrink(busy)

    def read(self, key: BlockKey, nbytes: int) -> None:
        """Note that a record was there and whole."""
        self._learn(key, nbytes)
        self._keep(key)

    def missing(self, key: BlockKey) -> None:
        """Believe that a chunk is not there, for a moment: a request must not ask for it again and again."""
        if self._has(key):
            self._residency.erase(self._tier, key)
        self._ends.pop(key, None)
        self._absent[key] = self._clock() + ABSENT_S
        self._absent.move_to_end(key)
        while len(self._absent) > _MOST_ABSENT:
            self._absent.popitem(last=False)

    def tick(self, busy: Container[BlockKey]) -> None:
        """End what is due, a part of it in each step."""
        now = self._clock()
        for _ in range(min(_SLICE, len(self._ends))):
            key, until = next(iter(self._ends.items()))
            if until > now:
                return
            self._end(key, busy)

    def check(self, busy: Container[BlockKey]) -> None:
        """Assert that whatever is believed has an end.

        Raises:
            AssertionError: it has not.
        """
        held = set(self._residency.held(self._tier))
        assert held == self._ends.keys(), "a belief without an end"
        assert len(held) <= _MOST or any(key in busy for key in held), "too many beliefs"

    def _has(self, key: BlockKey) -> bool:
        return bool(self._residency.index.flags_of(key) >> self._tier & 1)

    def _keep(self, key: BlockKey) -> None:
        self._absent.pop(key, None)
        self._ends[key] = self._clock() + PRESENT_S
        self._ends.move_to_end(key)

    def _shrink(self, busy: Container[BlockKey]) -> None:
        for _ in range(len(self._ends) - _MOST):
            self._end(next(iter(self._ends)), busy)

    def _end(self, key: BlockKey, busy: Container[BlockKey]) -> None:
        if key in busy:
            self._ends[key] = self._clock() + ABSENT_S
            self._ends.move_to_end(key)
        else:
            del self._ends[key]
            self._residency.erase(self._tier, key)

    def _size(self, key: BlockKey) -> int:
        return int(self._sizes.get(key[-4:], self._largest))

    def _learn(self, key: BlockKey, nbytes: int) -> None:
        known = self._sizes.get(key[-4:], float(nbytes))
        self._sizes[key[-4:]] = known + _WEIGHT * (nbytes - known)
