"""What is to be removed from a tier, what is being removed, and what would not go."""

from collections.abc import Callable
from itertools import islice

from kvtier.types import BlockKey

_MAX = 128  # under way
_ROUND = 8  # of what would not go
_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


class Removals:
    """Records by key, with the bytes that they take until every rank has removed them.

    What would not go is tried again in rounds of a few: after a second, and after each round in vain after twice as
    long, up to a minute. After a round in which one went the next follows at once. While nothing goes at all, nothing
    else is taken on: a record that stays on the medium is better known than forgotten.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._doomed: dict[BlockKey, int] = {}
        self._stuck: dict[BlockKey, int] = {}  # would not go; the first is tried first
        self._under_way: dict[BlockKey, int] = {}
        self._round: set[BlockKey] = set()  # of those under way: they would not go before
        self.nbytes_under_way = 0
        self._vain = 0  # in a row that would not go at the first try
        self._retry_s = _RETRY_S
        self._retry_at = 0.0

    def __len__(self) -> int:
        return len(self._doomed) + len(self._stuck)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._doomed or key in self._stuck

    @property
    def under_way(self) -> int:
        """How many are."""
        return len(self._under_way)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(self._doomed.values()) + sum(self._stuck.values()) + self.nbytes_under_way

    @property
    def left(self) -> int:
        """How many more may be under way."""
        return 0 if self._vain >= _ROUND else max(0, _MAX - len(self._under_way))

    def doom(self, key: BlockKey, nbytes: int) -> None:
        """Let a record go, when there is a turn for it."""
        self._doomed[key] = nbytes

    def take(self) -> list[BlockKey]:
        """Take the records to order off every rank now."""
        keys = list(islice(self._doomed, self.left))
        for key in keys:
            self.begin(key, self._doomed.pop(key))
        return keys + self._take_round()

    def begin(self, key: BlockKey, nbytes: int) -> None:
        """Note a removal that is ordered."""
        self._under_way[key] = nbytes
        self.nbytes_under_way += nbytes

    def end(self, key: BlockKey, *, ok: bool) -> int:
        """Note a removal that every rank has answered, and return the bytes that are free."""
        nbytes = self._under_way.pop(key)
        self.nbytes_under_way -= nbytes
        again = key in self._round
        self._round.discard(key)
        if ok:
            self._vain = 0
            if again:
                self._retry_s, self._retry_at = _RETRY_S, 0.0
            return nbytes
        if not again:
            self._vain += 1
        if not self._stuck and not self._round and not again:
            self._put_off()
        self._stuck[key] = nbytes
        return 0

    def check(self, removes: int) -> None:
        """Assert that `removes` are under way, and that no record is in two places.

        Raises:
            AssertionError: they are not, or one is.
        """
        assert len(self._under_way) == removes, "a removal is lost"
        assert self.nbytes_under_way == sum(self._under_way.values()), "removals are miscounted"
        parts = (self._doomed, self._stuck, self._under_way)
        assert len(set().union(*parts)) == sum(map(len, parts)), "removed twice at a time"

    def _take_round(self) -> list[BlockKey]:
        if not self._stuck or self._round or self._clock() < self._retry_at:
            return []
        keys = list(islice(self._stuck, _ROUND))
        for key in keys:
            self.begin(key, self._stuck.pop(key))
        self._round.update(keys)
        self._put_off()
        return keys

    def _put_off(self) -> None:
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _MAX_RETRY_S)
