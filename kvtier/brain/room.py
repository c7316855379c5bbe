"""How much of its configured capacity a medium really takes: learned where a write finds no room."""

from collections.abc import Callable, Iterable

from kvtier.types import BlockKey

_LEAST = 16  # records: with room for fewer nothing is written
_ASK_S = 10.0  # between two questions what is free
_REST_S = 60.0  # how long writes rest that cannot help
_GROWTH = 100  # this part of what is configured is tried again each minute where nobody can say what is free


class Room:
    """The capacity of one tier as its medium has it, never more than is configured. It orders nothing.

    - A write that finds no room makes the capacity what the tier holds and what is free, less a headroom. Writes that
      were under way then say nothing new. From then on the ranks are asked what is free, and the capacity follows.
    - Where nobody can say (a quota, or a medium that has room and takes nothing), the capacity is what the tier holds,
      and grows slowly.
    - If the first write after removals finds no room either, removals do not help: no more is removed. Writes rest, and
      are tried again where the medium says that it has room, until one succeeds.
    - A tier that removes what it wrote a moment ago, and nobody read, only churns: writes rest too.
    """

    def __init__(
        self,
        configured: int,
        largest: int,
        max_writes: int,
        clock: Callable[[], float],
    ) -> None:
        """Begin with what is configured, for records of at most `largest` bytes, `max_writes` of them under way."""
        self.configured = self.capacity = configured
        self.largest = largest
        self._max_writes = max_writes
        self._least = min(_LEAST * largest, configured // 2)
        self._clock = clock
        self._free = 0  # as last said
        self._blind = False  # nobody can say what is free
        self._ask_at = self._grow_at = self._rest_until = 0.0
        self._helped = True  # a write succeeded since the last that found no room
        self._removed = 0  # bytes since then
        self._trial = False  # nothing is removed until a write succeeds
        self.forget()

    def forget(self) -> None:
        """Forget what is under way, and every record: the ranks start anew, on the same medium."""
        self._asked = False
        self._burst: set[BlockKey] = set()  # writes under way when one found no room
        self._fresh: dict[
            BlockKey, float
        ] = {}  # when records were written that nobody read, of the last minute

    @property
    def short(self) -> int:
        """Bytes of what is configured that the medium has not."""
        return self.configured - self.capacity

    @property
    def headroom(self) -> int:
        """Bytes to keep free for the writes to come."""
        return self._headroom(self.capacity)

    @property
    def writable(self) -> bool:
        """Whether the medium takes writes."""
        if self._trial and not self._blind and self._free < self.headroom:
            return False
        return self._enough

    @property
    def evicts(self) -> bool:
        """Whether room may be made by removing."""
        return self._enough and not self._trial

    @property
    def _enough(self) -> bool:
        too_little = self.short and self.capacity < self._least
        return not too_little and self._clock() >= self._rest_until

    def ask(self) -> bool:
        """Whether to ask the ranks now what is free."""
        now = self._clock()
        if self._asked or now < self._ask_at or not (self.short or self._trial):
            return False
        self._ask_at = now + _ASK_S
        if self._blind:
            self._grow(now)
            return False
        self._asked = True
        return True

    def measured(self, known: int, free: int | None) -> None:
        """Take what the ranks say is free beside `known` bytes; None: they did not say."""
        self._asked = False
        if free is None or free < 0 or self._blind:
            return
        self._free = free
        fits = self._fitting(known + free)
        if fits > self.capacity or free < self.headroom // 2:
            self.capacity = fits

    def refused(self, key: BlockKey, known: int, free: int, others: Iterable[BlockKey]) -> None:
        """Take that a write found no room beside `known` bytes, with `others` under way; `free` -1: nobody can say."""
        if self._was_under_way(key):
            return
        now = self._clock()
        useless = self._trial or (self._removed > 0 and not self._helped)
        self._burst = set(others)
        self._helped, self._removed, self._ask_at = False, 0, now + _ASK_S
        self._free = free
        # A few records may have failed at the same moment, and their bytes be free again.
        self._blind = free < 0 or free > max(_LEAST * self.largest, self._headroom(known + free))
        self._grow_at = now + _REST_S
        self.capacity = min(self.capacity, known if self._blind else self._fitting(known + free))
        if useless:
            self._trial = True
            self._rest_until = now + _REST_S

    def wrote(self, key: BlockKey) -> None:
        """Take that a write succeeded."""
        if not self._was_under_way(key):
            self._helped, self._trial = True, False
        if self.short:
            now = self._clock()
            self._fresh.pop(key, None)
            while self._fresh and now - next(iter(self._fresh.values())) >= _REST_S:
                del self._fresh[next(iter(self._fresh))]
            self._fresh[key] = now

    def failed(self, key: BlockKey) -> None:
        """Take that a write failed for another reason."""
        self._burst.discard(key)

    def read(self, key: BlockKey) -> None:
        """Take that a record was read."""
        self._fresh.pop(key, None)

    def evicted(self, key: BlockKey) -> None:
        """Take that a record is on its way out, for room."""
        written = self._fresh.pop(key, None)
        now = self._clock()
        if written is not None and now - written < _REST_S:
            self._rest_until = now + _REST_S

    def removed(self, nbytes: int) -> None:
        """Take that bytes were removed for room, of our own or of other namespaces."""
        self._removed += nbytes

    def _was_under_way(self, key: BlockKey) -> bool:
        """Whether a write that ended was under way when one found no room; it is not any more."""
        found = key in self._burst
        self._burst.discard(key)
        return found

    def _grow(self, now: float) -> None:
        if now >= self._grow_at:
            self._grow_at = now + _REST_S
            self.capacity = min(self.configured, self.capacity + self.configured // _GROWTH + 1)

    def _fitting(self, total: int) -> int:
        return min(self.configured, max(0, total - self._headroom(total)))

    def _headroom(self, capacity: int) -> int:
        some = max(capacity // 16, min(self.largest, capacity // 2))
        return min(self._max_writes * self.largest, some)
