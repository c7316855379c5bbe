"""One lower tier as the I/O process serves it: records around a Tier, verified before a slot holds them."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from kvtier.codec import MARGIN, ChunkFacts, Codec, CodecChoice
from kvtier.decoders import Decoders
from kvtier.errors import CorruptBlock, TierError, Undecodable
from kvtier.io_process import record, shelf
from kvtier.io_process.buffers import ArenaView, ThreadBuffers
from kvtier.io_process.key_norms import key_norm, objection
from kvtier.io_process.record import Header, Identity, padded
from kvtier.io_process.shelf import TierShelf
from kvtier.io_process.wire import IoSetup
from kvtier.limited_log import LimitedLog
from kvtier.tier import AskedTier, Bytes, Entry, Site, Tier
from kvtier.types import PAGE, OpKind, OpStatus, TierOp
from kvtier.units import format_nbytes

logger = logging.getLogger(__name__)

PROBE_KEY = b"\0kvtier probe"
_SAY_S = 60.0  # between two lines of one cause
WORTH_IT = 0.97  # an encoding larger than this share of the chunk is not kept


class Served(NamedTuple):
    """How an operation ended."""

    status: OpStatus
    nbytes: int = 0
    error: str = ""
    codec: str = ""  # WRITE: what the record is encoded with
    score: float = 0.0
    free: int = -1  # NO_ROOM: bytes that the medium still takes; -1: nobody can say
    coded: float = 0.0  # seconds in the codec and the checksum
    found: int = -1  # ASK: keys that lead


class _Change(NamedTuple):
    """An OPEN or a RESET, and the epoch that it begins."""

    op: TierOp
    epoch: int


class _Encoding(NamedTuple):
    """A payload, padded to whole pages."""

    codec: int
    label: str
    nbytes: int  # without padding
    pieces: list[Bytes]


class Session(NamedTuple):
    """What is open, and by which change; another one after each change, also of the same namespace."""

    namespace: str
    shelf: TierShelf
    change: _Change


class Records:
    """Serve the operations of one tier, for one rank.

    `serve` and `scan` may come from any thread; `change`, `probe` and `reclaim` from one thread, one after
    the other. An operation received before a reset never touches what comes after it.
    """

    def __init__(
        self,
        tier: Tier,
        codec: Codec,
        site: Site,
        slots: ArenaView,
        setup: IoSetup,
        depth: int | None = None,
        *,
        keeps: bool = True,
    ) -> None:
        """Take what this rank has; another rank `keeps` the records where it does not: it writes and removes them."""
        self.name = site.name
        self.log = LimitedLog(logger, _SAY_S)
        self.depth = depth
        self._tier = tier
        self.asked = tier if isinstance(tier, AskedTier) else None
        self._codec = codec
        self._decoders = Decoders(*(codec.among if isinstance(codec, CodecChoice) else (codec,)))
        self._site = site
        self._keeps = keeps
        self._rank = site.rank
        self._slots = slots
        self._group_nbytes = setup.group_nbytes
        self._layouts = setup.layouts
        self._unscored: set[int] = set()  # groups of which it was said that they cannot be
        self._facts = {group: setup.facts(group) for group in setup.group_nbytes}
        largest = max(setup.group_nbytes.values())
        self.largest = PAGE + padded(largest)  # bytes of a record whose codec saves nothing
        self._scratch = ThreadBuffers(padded(largest + MARGIN))
        self._session: Session | None = None
        self._pending: _Change | None = None
        self._judged = False

    @property
    def session(self) -> Session | None:
        """What is open now."""
        return self._session

    def change(self, op: TierOp, epoch: int) -> None:
        """OPEN or RESET; where it fails nothing is served until `probe` or another change succeeds."""
        if self._pending and self._pending.op.kind is OpKind.RESET:
            op = op._replace(kind=OpKind.RESET)  # what that one should have removed still has to go
        self._session = None
        self._pending = change = _Change(op, epoch)
        namespace = record.namespace_of(op.text)
        (self._tier.reset if op.kind is OpKind.RESET else self._tier.open)(namespace, op.text)
        shelf = TierShelf(self._tier, namespace, self._rank)
        self._session = Session(namespace, shelf, change)
        self._pending = None

    def serve(self, op: TierOp, epoch: int, waiting: int = 0) -> Served:
        """Run a READ, WRITE, REMOVE, SCORE or ASK that was received in `epoch`, while so many reads wait for a thread.

        Raises:
            TierError: the medium failed, or nothing is open.
        """
        session = self._session
        if session is None:
            raise TierError(self.name, op.kind.name.lower(), "no namespace is open")
        if session.change.epoch != epoch:
            return Served(OpStatus.CANCELLED, error="the tier was reset")
        if not self._keeps and op.kind in (OpKind.WRITE, OpKind.REMOVE):
            return Served(OpStatus.OK)
        match op.kind:
            case OpKind.READ:
                return self._read(op, session)
            case OpKind.WRITE:
                if self.asked and self.asked.has(op.key):
                    return Served(OpStatus.OK)  # another engine was faster
                return self._write(op, session, waiting)
            case OpKind.ASK:
                return self._ask(op)
            case OpKind.SCORE:
                return self._score(op)
        self._tier.remove(op.key)
        return Served(OpStatus.OK)

    def reclaim(self, nbytes: int) -> int:
        """Remove foreign namespaces until `nbytes` are free and return the foreign bytes left."""
        return self._tier.reclaim(nbytes)

    def free(self, nbytes: int) -> int:
        """Return how many bytes of records of `nbytes` each the medium still takes; -1: nobody can say."""
        free = self._tier.free(nbytes)
        return -1 if free is None else free

    def probe(self) -> int | None:
        """Try the tier out, after opening again what is not open or not there.

        Returns:
            The operation that a namespace had to be opened for, and whose list begins anew; else None.

        Raises:
            TierError: the tier is still not well.
        """
        if self._pending is None:
            with suppress(TierError):
                self._try_out()
                return None
        change, session = self._pending, self._session
        if change is None and session is not None:  # somebody removed its directory
            change = _Change(session.change.op._replace(kind=OpKind.OPEN), session.change.epoch)
        if change is not None:
            self.change(*change)
        self._try_out()
        return change.op.op if change else None

    def scan(self, session: Session | None) -> Iterator[Entry]:
        """List the records until `session` ends."""
        for entry in self._tier.scan():
            if self._session is not session:
                return
            if entry.key == PROBE_KEY:
                self._tier.remove(PROBE_KEY)
            elif not entry.key.startswith(shelf.PREFIX):
                yield entry

    def judge_room(self, free: int, held: int) -> None:
        """Warn once if the medium, which has so much free beside what is held there, is too small for the tier."""
        site = self._site
        if self._judged or free < 0 or site.rank % site.local_ranks or not self._keeps:
            return
        self._judged = True
        if free + held < site.capacity:
            logger.warning(
                "tier %r: a capacity of %s per rank, and its medium has room for %s: it will hold no more than that; "
                "is the disk mounted? else lower tiers[].capacity",
                self.name,
                format_nbytes(site.capacity),
                format_nbytes(free + held),
            )

    def located(self) -> list[tuple[int, int]]:
        """Return NUMA nodes and the bytes on each that the tier's memory has now."""
        return self._tier.located()

    def close(self) -> None:
        """Close the tier; idempotent."""
        self._session = None
        self._tier.close()

    def _ask(self, op: TierOp) -> Served:
        """Let the first rank say what it has; what another one lacks, its read finds out."""
        if self._site.rank or self.asked is None:
            return Served(OpStatus.OK)
        return Served(OpStatus.OK, found=self.asked.leading(op.keys))

    def _read(self, op: TierOp, session: Session) -> Served:
        try:
            nbytes, coded = self._fill(op, session)
        except CorruptBlock as exc:
            if self.asked:
                return self._read_again(self.asked, op, session)
            self.log.warning(
                OpStatus.CORRUPT, "record %s is corrupt and goes: %s", op.key.hex(), exc
            )
            try:
                self._tier.remove(op.key)
            except TierError as stays:
                self.log.warning(
                    OpKind.REMOVE, "record %s cannot be removed: %s", op.key.hex(), stays
                )
            return Served(OpStatus.CORRUPT, error=str(exc))
        return Served(OpStatus.OK if nbytes else OpStatus.MISSING, nbytes, coded=coded)

    def _read_again(self, tier: AskedTier, op: TierOp, session: Session) -> Served:
        """Read once more what was corrupt, as somebody may be writing it; drop it only if it is as it was."""
        try:
            nbytes, coded = self._fill(op, session)
        except CorruptBlock as exc:
            said = "record %s is corrupt and goes: %s"
            self.log.warning(OpStatus.CORRUPT, said, op.key.hex(), exc)
            if not isinstance(exc, Undecodable):  # which others may be able to
                with suppress(TierError):
                    tier.discard(op.key, self._scratch.header.tobytes())
            return Served(OpStatus.CORRUPT, error=str(exc))
        return Served(OpStatus.OK if nbytes else OpStatus.MISSING, nbytes, coded=coded)

    def _write(self, op: TierOp, session: Session, waiting: int) -> Served:
        started = time.monotonic()
        chunk = self._slots.view(op.slot)[: self._group_nbytes[op.group]]
        facts = self._facts_of(session, op.group, op.end_token)
        encoding = self._encode(chunk, facts, waiting)
        header = Header(
            encoding.codec,
            session.namespace,
            self._rank,
            op.group,
            op.end_token,
            len(chunk),
            encoding.nbytes,
            op.key,
            op.parent,
            record.checksum(*encoding.pieces),
        )
        page = self._scratch.header
        record.pack(header, page)
        pieces = [page, *encoding.pieces]
        coded = time.monotonic() - started
        try:
            nbytes = self._tier.write(op.key, pieces)
        except TierError as exc:
            if not exc.full:
                raise
            said = "tier %r has no room: %s; it goes on with what it has, and takes that for its capacity"
            self.log.warning(OpStatus.NO_ROOM, said, self.name, exc)
            free = -1 if exc.quota else self.free(sum(map(len, pieces)))
            return Served(OpStatus.NO_ROOM, error=str(exc), free=free)
        return Served(OpStatus.OK, nbytes, codec=encoding.label, coded=coded)

    def _score(self, op: TierOp) -> Served:
        layout = self._layouts.get(op.group, "nobody said")
        why = objection(layout)
        if why or isinstance(layout, str):
            if op.group not in self._unscored:
                self._unscored.add(op.group)
                logger.warning("chunks of group %d cannot be scored: %s", op.group, why)
            return Served(OpStatus.MISSING, error=why)
        chunk = self._slots.view(op.target)[: self._group_nbytes[op.group]]
        return Served(OpStatus.OK, score=key_norm(chunk, layout))

    def _try_out(self) -> None:
        """Write, read back and drop a small record; a medium that is only full is well."""
        try:
            self._write_and_read()
        except TierError as exc:
            if not exc.full:
                raise
            self._tier.read(PROBE_KEY, [self._scratch.tail])

    def _write_and_read(self) -> None:
        pages, key = self._scratch, PROBE_KEY
        if not self._keeps:
            self._tier.read(PROBE_KEY, [pages.tail])
            return
        if self.asked:
            key += os.urandom(8)  # others may try it out too
        pages.header[:] = np.frombuffer(os.urandom(PAGE), np.uint8)
        self._tier.write(key, [pages.header])
        found = self._tier.read(key, [pages.tail])
        self._tier.remove(key)
        if found != PAGE or not np.array_equal(pages.header, pages.tail):
            raise TierError(self.name, "probe", "what was written did not come back")

    def _fill(self, op: TierOp, session: Session) -> tuple[int, float]:
        """Fill the slot with the verified chunk; return the record's length, 0 where there is none, and the seconds after it was read."""
        slot = self._slots.view(op.slot)
        raw_nbytes = self._group_nbytes[op.group]
        scratch = self._scratch
        # A raw record lands in the slot at once; whoever asked sees it only after it was verified.
        target = (slot if self._codec.id == 0 else scratch.bounce)[: padded(raw_nbytes)]
        nbytes = self._tier.read(op.key, [scratch.header, target])
        if not nbytes:
            return 0, 0.0
        started = time.monotonic()
        if nbytes < PAGE:
            raise CorruptBlock(f"the record has {nbytes} bytes")
        header = record.unpack(scratch.header)
        want = Identity(session.namespace, self._rank, op.group, op.key, raw_nbytes)
        record.check_identity(header, want)
        record.check_payload(header, nbytes, target[: padded(header.stored_nbytes)])
        facts = self._facts_of(session, header.group, header.end_token)
        try:
            self._decode(header, target[: header.stored_nbytes], slot[:raw_nbytes], facts)
        except CorruptBlock as exc:
            raise Undecodable(str(exc)) from exc
        return nbytes, time.monotonic() - started

    def _decode(self, header: Header, payload: Bytes, chunk: Bytes, facts: ChunkFacts) -> None:
        in_slot = self._codec.id == 0
        if header.codec == 0 and in_slot and len(payload) == len(chunk):
            return
        if in_slot:  # written under another codec than the tier has now
            bounce = self._scratch.bounce[: len(payload)]
            bounce[:] = payload
            payload = bounce
        self._decoders.of(header.codec).decode(payload, chunk, facts)

    def _facts_of(self, session: Session, group: int, end_token: int) -> ChunkFacts:
        return self._facts[group]._replace(end_token=end_token, shelf=session.shelf)

    def _encode(self, chunk: Bytes, facts: ChunkFacts, waiting: int) -> _Encoding:
        codec, bounce = self._codec, self._scratch.bounce
        if isinstance(codec, CodecChoice):
            codec, n = codec.encode_by_one(chunk, bounce, facts, waiting)
        else:
            n = codec.encode(chunk, bounce, facts)
        if n is None or n > len(chunk) * WORTH_IT:
            return self._raw(chunk)
        bounce[n : padded(n)] = 0
        return _Encoding(codec.id, codec.label, n, [bounce[: padded(n)]])

    def _raw(self, chunk: Bytes) -> _Encoding:
        scratch = self._scratch
        whole = len(chunk) // PAGE * PAGE
        pieces = [chunk[:whole]] if whole else []
        if rest := len(chunk) - whole:
            scratch.tail[:rest] = chunk[whole:]
            scratch.tail[rest:] = 0
            pieces.append(scratch.tail)
        return _Encoding(0, "raw", len(chunk), pieces)
