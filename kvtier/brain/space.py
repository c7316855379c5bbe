"""The room of a tier whose bytes are ours: what is used, what was found at start, what must go."""

from collections.abc import Callable

from kvtier.brain.groups import Groups, Place
from kvtier.brain.index import Index
from kvtier.brain.plans import TierSpec
from kvtier.brain.removals import Removals
from kvtier.brain.room import Room
from kvtier.brain.scan import Scan
from kvtier.types import PAGE, BlockKey, ScanBatch

_RECLAIM_S = (
    1.0  # until foreign bytes that stayed are asked for again; while none goes, twice as long
)
_MAX_RECLAIM_S = 60.0
_DRAIN_S = 1.0  # so rarely asked for, foreign bytes are here to stay
_AWAKE_S = 1.0
_LIST_SLICE = 2048  # records of a list that are looked at per step: two milliseconds


class Space:
    """The bytes of one tier. Nothing outside writes a number of it, and nothing in it orders an operation.

    `used` counts every byte that may be on the medium: records, those being written at their worst case, and
    those not removed on every rank yet.
    """

    def __init__(
        self,
        tier: int,
        room: Room,
        *,
        ranks: int,
        index: Index,
        groups: Groups,
        clock: Callable[[], float],
    ) -> None:
        """Account the bytes that `room` says there are."""
        self.room = room
        self.used = 0
        self.foreign = 0  # bytes of other namespaces on the same medium
        self._tier = tier
        self._ranks = ranks
        self._index = index
        self._groups = groups
        self._clock = clock
        self._late = 0  # bytes of writes of before a reset, which nobody has counted yet
        self._writing = 0
        self.clear()

    def clear(self) -> None:
        """Forget all of it, and every scan: the ranks start anew."""
        self.used = 0
        self._late += self._writing
        self.wanted = 0  # bytes that a write was refused for
        self._over = max(0, -self.free)  # bytes above capacity that were there before us
        self.room.forget()
        self._writes: dict[BlockKey, int] = {}  # under way, and the bytes reserved for each
        self._writing = 0  # bytes of these
        self._removals = Removals(self._clock)
        self._victims: set[BlockKey] = set()  # removals under way that are for room
        self._reclaiming: tuple[int, int] | None = None  # foreign bytes when asked, bytes asked
        self._reclaim_at, self._reclaim_s = 0.0, _RECLAIM_S
        self._scan: Scan | None = None
        self._blind = False  # what the medium holds is not known yet
        self._listed = 0  # bytes found by the scan and not taken in yet
        self._written: set[BlockKey] = set()  # since the scan began, while it lasts
        self._moved = self._clock()

    @property
    def free(self) -> int:
        """Bytes that a write may reserve."""
        return self.room.capacity - self.used - self.foreign

    # records

    @property
    def doomed(self) -> int:
        """How many records wait to be removed."""
        return len(self._removals)

    def is_doomed(self, key: BlockKey) -> bool:
        """Whether a record waits to be removed."""
        return key in self._removals

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes may be reserved now; if not, room is made for a later write.

        There is none before all that the medium holds is known.
        """
        if self._blind or self.free < nbytes:
            self.wanted = max(self.wanted, nbytes)
            return False
        return True

    @property
    def takes(self) -> bool:
        """Whether what was refused for room would have it now."""
        return not self._blind and self.wanted <= self.free

    def reserve(self, key: BlockKey, nbytes: int) -> None:
        """Account a write that was ordered, at its worst case."""
        self._writes[key] = nbytes
        self._writing += nbytes
        self.used += nbytes
        if self._scan is not None:
            self._written.add(key)

    def wrote(self, key: BlockKey, nbytes: int | None, free: int | None = None) -> None:
        """Account a write that ended: a record of `nbytes` on every rank, or with None perhaps one on some.

        `free` is what a rank that found no room says is left on its medium, -1 if nobody can say.
        """
        known = self._known
        reserved = self._writes.pop(key)
        self._writing -= reserved
        if nbytes is not None:
            self._resize(nbytes - reserved)
            self.room.wrote(key)
            return
        self._removals.doom(key, reserved)
        if free is None:
            self.room.failed(key)
        else:
            self.room.refused(key, known, free, self._writes)
            self._refit()

    def doom(self, key: BlockKey, nbytes: int) -> None:
        """Let a record that is not in the index any more go, from every rank."""
        self._removals.doom(key, nbytes)

    def take_doomed(self) -> list[BlockKey]:
        """Take the records to order off every rank now."""
        return self._removals.take()

    @property
    def removals_left(self) -> int:
        """How many removals more may be under way."""
        return self._removals.left

    def evict(self, key: BlockKey, nbytes: int) -> None:
        """Account a removal for room that is ordered: its bytes stay used until every rank has answered."""
        self.room.evicted(key)
        self._victims.add(key)
        self._removals.begin(key, nbytes)

    def removed(self, key: BlockKey, *, ok: bool) -> None:
        """Account a removal that ended: its bytes are free, or it is tried again later."""
        nbytes = self._removals.end(key, ok=ok)
        self._resize(-nbytes)
        if key in self._victims:
            self._victims.discard(key)
            self.room.removed(nbytes)

    # room

    def ask(self) -> bool:
        """Whether to ask the ranks now how much their media still take."""
        return self.room.ask()

    def measured(self, free: int | None) -> None:
        """Take how much the fullest medium still takes; None: no answer."""
        self.room.measured(self._known, free)
        self._refit()

    def lacking(self) -> int:
        """Return the bytes to make room for now; 0 while foreign ones are being reclaimed."""
        need = max(self.room.headroom, self.wanted) - self.free - self._removals.nbytes_under_way
        self.wanted = 0
        return max(0, need) if self.room.evicts and not self._reclaiming else 0

    def reclaim(self, nbytes: int) -> bool:
        """Whether `nbytes` are to be reclaimed now from other namespaces."""
        if not self.foreign or self._clock() < self._reclaim_at:
            return False
        self._reclaiming = (self.foreign, nbytes)
        return True

    def reclaimed(self, left: int | None) -> None:
        """Take the foreign bytes that a reclaim left, None if it failed; what does not go is asked for more and more rarely."""
        before, asked = self._reclaiming or (0, 0)
        self._reclaiming = None
        left = before if left is None else left
        self.room.removed(max(0, before - left))
        later = min(2 * self._reclaim_s, _MAX_RECLAIM_S)
        self._reclaim_s = _RECLAIM_S if left < before else later
        if before - left < asked:
            self._reclaim_at = self._clock() + self._reclaim_s
        self.found_foreign(left)

    @property
    def waits(self) -> bool:
        """Whether room comes by itself: foreign bytes go before our own records."""
        return self.foreign > 0 and self._reclaim_s <= _DRAIN_S

    def found_foreign(self, nbytes: int) -> None:
        """Note the bytes of other namespaces on the same medium."""
        self._moved = self._clock()
        self.foreign = nbytes + self._late
        self._late = 0
        self._refit()

    # what was there at start

    @property
    def listing(self) -> bool:
        """Whether records found at start are coming in."""
        return self._scan is not None

    @property
    def scanning(self) -> bool:
        """Whether records found at start are coming in, and came within the last second."""
        return self._scan is not None and self._clock() - self._moved <= _AWAKE_S

    def expect_list(self, opening: int) -> None:
        """Expect every rank's list of what it has, as the OPEN of this number asks for it."""
        self._scan = Scan(opening, self._ranks)
        self._blind = True
        self._moved = self._clock()

    def late(self, seconds: float) -> bool:
        """Whether a list has not moved for so long."""
        return self._blind and self._clock() - self._moved > seconds

    def scanned(self, batch: ScanBatch) -> None:
        """Take a batch of such a list; one of another OPEN, or of before a reset, is ignored."""
        if self._scan is not None and self._scan.add(batch):
            self._moved = self._clock()

    def take_found(self, n: int) -> list[tuple[BlockKey, Place, int]]:
        """Take up to `n` records that every rank has listed, but for what changed since: that wins."""
        scan = self._scan
        if scan is None:
            return []
        if scan.work(_LIST_SLICE):
            self._moved = self._clock()
        if not scan.listed:
            return []
        self._moved = self._clock()
        if self._blind:
            self._account(scan)
        found = scan.take(n)
        fresh = []
        for key, nbytes in found:
            self._listed -= nbytes
            known = key in self._written or self._index.flags_of(key) >> self._tier & 1
            if known or not self._groups.knows(key):  # or a file that is no record of this model
                self._resize(-nbytes)
            else:
                fresh.append((key, Place(None, 0), nbytes))
        if len(found) < n:
            self._scan = None
            self._written.clear()
        return fresh

    def _account(self, scan: Scan) -> None:
        """Count what the ranks have listed; what some of them lack is to be removed."""
        self._blind = False
        self._listed = scan.nbytes
        self._resize(scan.nbytes)
        for key, nbytes in scan.orphans():
            self._removals.doom(key, nbytes)
            self._resize(nbytes)

    def check(self, records: int, *, writes: int, removes: int) -> None:
        """Assert that the bytes add up, `records` being those of what the index says is here.

        Raises:
            AssertionError: they do not, or `writes` and `removes` under way are others than are accounted.
        """
        assert self._writing == sum(self._writes.values()), "writes are miscounted"
        parts = records + self._writing + self._removals.nbytes + self._listed
        assert self.used == parts, f"{self.used} bytes used, {parts} known"
        assert len(self._writes) == writes, "a lost reservation"
        assert not any(key in self._removals for key in self._writes), "a doomed record in use"
        assert len(self._victims) <= removes, "a victim is not on its way"
        self._removals.check(removes)
        assert -self.free <= self._over, "over its capacity"

    @property
    def _known(self) -> int:
        """Bytes that are surely on the medium, but for writes that are about to be answered."""
        return self.used - self._writing + self.foreign

    def _refit(self) -> None:
        self._over = max(0, -self.free)

    def _resize(self, nbytes: int) -> None:
        """Account bytes that were not reserved: they may exceed the capacity."""
        self.used += nbytes
        excess = max(0, -self.free)
        self._over = excess if nbytes > 0 else min(self._over, excess)


def make_space(
    tier: int,
    spec: TierSpec,
    largest: int,
    ranks: int,
    index: Index,
    groups: Groups,
    clock: Callable[[], float],
) -> Space | None:
    """Account a tier of records of at most `largest` bytes; None where its room is not ours."""
    if spec.capacity is None:
        return None
    return Space(
        tier,
        Room(spec.capacity, largest, spec.max_writes, clock),
        ranks=ranks,
        index=index,
        groups=groups,
        clock=clock,
    )


def worst_case(nbytes: int) -> int:
    """Bytes of the largest record that a chunk of `nbytes` can become."""
    return PAGE + -(-nbytes // PAGE) * PAGE
