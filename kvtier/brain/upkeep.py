"""Keeps one lower tier going: opens it, resets it, probes it, takes its scan in, makes room in it."""

from collections.abc import Callable
from itertools import islice

from kvtier.brain.groups import Place
from kvtier.brain.lower_tier import LowerTier, Phase
from kvtier.brain.operations import Operation, Operations
from kvtier.brain.residency import Residency
from kvtier.brain.scan import Scan
from kvtier.types import OpKind, Priority, ScanBatch, TierOp

_SCAN_SLICE = 1024  # scanned records taken in per step: a few milliseconds
_MAX_REMOVES = 128  # under way
_RETRY_S = 1.0
_AWAKE_S = 1.0
_MAX_RETRY_S = 60.0
_RECLAIM_S = 60.0  # until foreign bytes that stayed are asked for again


class Upkeep:
    """The upkeep of a `LowerTier`: what time, room and the ranks' starts ask for, in `tick`."""

    def __init__(
        self,
        lower: LowerTier,
        residency: Residency,
        operations: Operations,
        *,
        ranks: int,
        largest: int,
        clock: Callable[[], float],
    ) -> None:
        self.lower = lower
        self._residency = residency
        self._operations = operations
        self._ranks = ranks
        capacity = lower.spec.capacity
        some = max(capacity // 16, min(largest, capacity // 2))
        self._headroom = min(lower.spec.max_writes * largest, some)
        self._clock = clock
        self._scan: Scan | None = None
        self._start = TierOp(0, OpKind.OPEN)  # what opens it: OPEN, after a reset RESET
        self._begun = False
        self._started = False
        self._moved = clock()
        self._lingering = 0  # operations of ended epochs under way
        self._retry_at = 0.0
        self._retry_s = _RETRY_S
        self._reclaim_at = 0.0
        self._reclaiming: tuple[int, int] | None = None  # foreign bytes when asked, bytes asked

    @property
    def scanning(self) -> bool:
        """Whether records found at start are coming in, and came within the last second."""
        return self._scan is not None and self._clock() - self._moved <= _AWAKE_S

    def open(self, manifest: str) -> None:
        """Order its start and the scan of what it holds."""
        self._scan = Scan(self._ranks)
        self.lower.changed = set()
        self._begin(OpKind.OPEN, manifest)

    def reset(self, manifest: str, lingering: int) -> None:
        """Order a fresh start: nothing is known any more, `lingering` old operations are under way.

        Used again only when they have ended: an old REMOVE must not meet a new record.
        """
        self.lower.clear()
        self.lower.breaker.forget_probe()
        self._scan = None
        self._reclaiming = None
        self._lingering = lingering
        self._begin(OpKind.RESET, manifest)

    def lingered(self) -> None:
        """Note the end of an operation of an ended epoch."""
        self._lingering -= 1
        self._open_if_ready()

    def ended(self, operation: Operation) -> None:
        """Take the answer to what this ordered."""
        match operation.op.kind:
            case OpKind.OPEN | OpKind.RESET:
                self.opened(operation)
            case OpKind.RECLAIM:
                self.reclaimed(operation)
            case OpKind.PROBE:
                self.lower.breaker.probed(ok=operation.ok)

    def opened(self, operation: Operation) -> None:
        """Take the answer to OPEN or RESET; a failure is ordered again later."""
        if operation.ok:
            self._started = True
            self._retry_s = _RETRY_S
            self.lower.set_foreign(operation.nbytes)
            self._open_if_ready()
        else:
            self.lower.phase = Phase.CLOSED
            self.lower.fail(operation.status)
            self._retry_at = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, _MAX_RETRY_S)

    def reclaimed(self, operation: Operation) -> None:
        """Take the answer to RECLAIM; what did not go is not asked for again soon."""
        before, asked = self._reclaiming or (0, 0)
        self._reclaiming = None
        left = operation.nbytes if operation.ok else before
        if before - left < asked:
            self._reclaim_at = self._clock() + _RECLAIM_S
        self.lower.set_foreign(left)

    def scanned(self, batch: ScanBatch) -> None:
        """Take a batch of what was there at start; after a reset batches are of an old namespace."""
        lower, scan = self.lower, self._scan
        if scan is None or scan.listed or lower.changed is None:
            return
        self._moved = self._clock()
        found = scan.add(batch)
        lower.listed += found
        lower.resize(found)
        if not scan.listed:
            return
        for key, nbytes in scan.orphans():
            if key not in lower.changed:
                lower.doomed[key] = nbytes
                lower.resize(nbytes)

    def tick(self) -> None:
        """Do what is due; called once per step."""
        lower = self.lower
        if lower.phase is Phase.CLOSED and self._begun and self._clock() >= self._retry_at:
            self._begin(self._start.kind, self._start.text)
        if lower.phase is Phase.OPEN and lower.breaker.due:
            lower.breaker.probing()
            self._order(TierOp(0, OpKind.PROBE, priority=Priority.WRITE))
        if lower.serving:
            self._take_scan()
            self._remove_doomed()
            self._make_room()

    def _begin(self, kind: OpKind, manifest: str) -> None:
        self._start = TierOp(0, kind, text=manifest)
        self._begun = True
        self._started = False
        self.lower.phase = Phase.OPENING
        self._order(self._start)

    def _order(self, op: TierOp) -> None:
        self._operations.order(op._replace(op=self._operations.number(), tier=self.lower.tier))

    def _open_if_ready(self) -> None:
        if self._started and not self._lingering:
            self.lower.phase = Phase.OPEN

    def _take_scan(self) -> None:
        scan, lower = self._scan, self.lower
        if scan is None or not scan.listed or lower.changed is None:
            return
        self._moved = self._clock()
        found = scan.take(_SCAN_SLICE)
        fresh = []
        for key, nbytes in found:
            lower.listed -= nbytes
            if key in lower.changed or self._residency.index.flags_of(key) >> lower.tier & 1:
                lower.resize(-nbytes)
            else:
                fresh.append((key, Place(None, 0), nbytes))
        self._residency.record(lower.tier, fresh)
        if len(found) < _SCAN_SLICE:
            self._scan = lower.changed = None

    def _remove_doomed(self) -> None:
        lower = self.lower
        n = _MAX_REMOVES - lower.removes
        if lower.doomed and n > 0 and self._clock() >= lower.remove_at:
            for key in list(islice(lower.doomed, n)):
                lower.remove(key, lower.doomed.pop(key))

    def _make_room(self) -> None:
        """Foreign bytes go before our own."""
        lower = self.lower
        need = max(self._headroom, lower.wanted) - lower.free - lower.removing
        lower.wanted = 0
        if need <= 0 or self._reclaiming:
            return
        if lower.foreign and self._clock() >= self._reclaim_at:
            self._reclaiming = (lower.foreign, need)
            self._order(TierOp(0, OpKind.RECLAIM, priority=Priority.WRITE, nbytes=need))
        else:
            self._evict(need)

    def _evict(self, need: int) -> None:
        lower = self.lower
        policy = self._residency.policies[lower.tier]
        chunks = self._residency.chunks[lower.tier]
        enough = 1 + need * chunks // max(1, lower.used)  # of average size
        n = min(_MAX_REMOVES - lower.removes, enough)
        for key in self._residency.victims(lower.tier, n, lower.ops):
            if need <= 0:
                return
            nbytes = self._residency.erase(lower.tier, key)
            policy.evicted(key)
            lower.counters.evictions += 1
            lower.remove(key, nbytes)
            need -= nbytes
