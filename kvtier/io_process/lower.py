"""One lower tier as the I/O process serves it: records around a Tier, verified before a slot holds them."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from kvtier.codec import Codec
from kvtier.errors import CorruptBlock, TierError
from kvtier.io_process import record
from kvtier.io_process.buffers import Bytes, ScratchPool, Slots
from kvtier.io_process.plugins import Decoders
from kvtier.io_process.record import PAGE, Header, Identity, padded
from kvtier.tier import Entry, Tier
from kvtier.types import OpKind, OpStatus, TierOp

logger = logging.getLogger(__name__)

PROBE_KEY = b"\0kvtier probe"
_WORTH_IT = 0.97  # an encoding larger than this share of the chunk is not kept


class Served(NamedTuple):
    """How an operation ended."""

    status: OpStatus
    nbytes: int = 0
    error: str = ""


class _Change(NamedTuple):
    """An OPEN or a RESET that is not done yet."""

    kind: OpKind
    manifest: str
    epoch: int


class _Session(NamedTuple):
    namespace: str
    manifest: str
    epoch: int


class LowerTier:
    """Serve the operations of one tier, for one rank.

    `serve` and `scan` may come from any thread; `change`, `probe` and `reclaim` from one thread, one after
    the other. An operation received before a reset never touches what comes after it.
    """

    def __init__(
        self,
        name: str,
        tier: Tier,
        codec: Codec,
        rank: int,
        slots: Slots,
        group_nbytes: Mapping[int, int],
    ) -> None:
        self.name = name
        self._tier = tier
        self._codec = codec
        self._decoders = Decoders(codec)
        self._rank = rank
        self._slots = slots
        self._group_nbytes = group_nbytes
        self._scratch = ScratchPool(padded(max(group_nbytes.values())))
        self._session: _Session | None = None
        self._pending: _Change | None = None
        self._verbs = {
            OpKind.READ: self._read,
            OpKind.WRITE: self._write,
            OpKind.REMOVE: self._remove,
        }

    @property
    def namespace(self) -> str:
        """The namespace that is open, or nothing."""
        return self._session.namespace if self._session else ""

    def change(self, kind: OpKind, manifest: str, epoch: int) -> None:
        """OPEN or RESET; where it fails nothing is served until `probe` or another change succeeds."""
        if self._pending and self._pending.kind is OpKind.RESET:
            kind = OpKind.RESET  # what that one should have made unreachable still has to go
        self._session = None
        self._pending = _Change(kind, manifest, epoch)
        namespace = record.namespace_of(manifest)
        (self._tier.reset if kind is OpKind.RESET else self._tier.open)(namespace, manifest)
        self._session = _Session(namespace, manifest, epoch)
        self._pending = None

    def serve(self, op: TierOp, epoch: int) -> Served:
        """Run a READ, WRITE or REMOVE that was received in `epoch`.

        Raises:
            TierError: the medium failed, or nothing is open.
        """
        session = self._session
        if session is None:
            raise TierError(self.name, op.kind.name.lower(), "no namespace is open")
        if session.epoch != epoch:
            return Served(OpStatus.CANCELLED, error="the tier was reset")
        return self._verbs[op.kind](op, session.namespace)

    def reclaim(self, nbytes: int) -> int:
        """Remove foreign namespaces until `nbytes` are free and return the foreign bytes left."""
        return self._tier.reclaim(nbytes)

    def probe(self) -> int | None:
        """Write, read back and drop a small record, after opening again what is not open or not there.

        Returns:
            The epoch to scan, where a namespace had to be opened.

        Raises:
            TierError: the tier is still not well.
        """
        if self._pending is None:
            with suppress(TierError):
                self._write_and_read()
                return None
        change = self._pending or self._again()
        if change is not None:
            self.change(*change)
        self._write_and_read()
        return change.epoch if change else None

    def scan(self, epoch: int) -> Iterator[Entry]:
        """List the records until the tier is reset."""
        for entry in self._tier.scan():
            if self._session is None or self._session.epoch != epoch:
                return
            if entry.key == PROBE_KEY:
                self._tier.remove(PROBE_KEY)
            else:
                yield entry

    def located(self) -> list[tuple[int, int]]:
        """Return NUMA nodes and the bytes on each that the tier's memory has now."""
        return self._tier.located()

    def close(self) -> None:
        """Close the tier; idempotent."""
        self._session = None
        self._tier.close()

    def _read(self, op: TierOp, namespace: str) -> Served:
        try:
            nbytes = self._fill(op, namespace)
        except CorruptBlock as exc:
            logger.warning("record %s is corrupt and removed: %s", op.key.hex(), exc)
            self._tier.remove(op.key)
            return Served(OpStatus.CORRUPT, error=str(exc))
        return Served(OpStatus.OK if nbytes else OpStatus.MISSING, nbytes)

    def _write(self, op: TierOp, namespace: str) -> Served:
        chunk = self._chunk(op)
        codec, stored_nbytes, payload = self._encode(chunk)
        header = Header(
            codec,
            namespace,
            self._rank,
            op.group,
            op.end_token,
            len(chunk),
            stored_nbytes,
            op.key,
            op.parent,
            record.checksum(*payload),
        )
        page = self._scratch.mine.header
        record.pack(header, page)
        return Served(OpStatus.OK, self._tier.write(op.key, [page, *payload]))

    def _remove(self, op: TierOp, namespace: str) -> Served:
        self._tier.remove(op.key)
        return Served(OpStatus.OK)

    def _again(self) -> _Change | None:
        """The OPEN that would bring back a directory that somebody removed."""
        session = self._session
        return session and _Change(OpKind.OPEN, session.manifest, session.epoch)

    def _write_and_read(self) -> None:
        pages = self._scratch.mine
        pages.header[:] = np.frombuffer(os.urandom(PAGE), np.uint8)
        self._tier.write(PROBE_KEY, [pages.header])
        found = self._tier.read(PROBE_KEY, [pages.tail])
        self._tier.remove(PROBE_KEY)
        if found != PAGE or not np.array_equal(pages.header, pages.tail):
            raise TierError(self.name, "probe", "what was written did not come back")

    def _chunk(self, op: TierOp) -> Bytes:
        return self._slots.view(op.slot)[: self._group_nbytes[op.group]]

    def _fill(self, op: TierOp, namespace: str) -> int:
        """Fill the slot with the verified chunk and return the record's length; 0 where there is none."""
        slot = self._slots.view(op.slot)
        raw_nbytes = self._group_nbytes[op.group]
        scratch = self._scratch.mine
        # A raw record lands in the slot at once; whoever asked sees it only after it was verified.
        target = (slot if self._codec.id == 0 else scratch.bounce)[: padded(raw_nbytes)]
        nbytes = self._tier.read(op.key, [scratch.header, target])
        if not nbytes:
            return 0
        if nbytes < PAGE:
            raise CorruptBlock(f"the record has {nbytes} bytes")
        header = record.unpack(scratch.header)
        record.check_identity(header, Identity(namespace, self._rank, op.group, op.key, raw_nbytes))
        record.check_payload(header, nbytes, target[: padded(header.stored_nbytes)])
        self._decode(header, target[: header.stored_nbytes], slot[:raw_nbytes])
        return nbytes

    def _decode(self, header: Header, payload: Bytes, chunk: Bytes) -> None:
        in_slot = self._codec.id == 0
        if header.codec == 0 and in_slot and len(payload) == len(chunk):
            return
        if in_slot:  # written under another codec than the tier has now
            bounce = self._scratch.mine.bounce[: len(payload)]
            bounce[:] = payload
            payload = bounce
        self._decoders.of(header.codec).decode(payload, chunk)

    def _encode(self, chunk: Bytes) -> tuple[int, int, list[Bytes]]:
        """Return codec id, payload length and the payload padded to whole pages, in pieces."""
        scratch = self._scratch.mine
        n = self._codec.encode(chunk, scratch.bounce)
        if n is not None and n <= len(chunk) * _WORTH_IT:
            scratch.bounce[n : padded(n)] = 0
            return self._codec.id, n, [scratch.bounce[: padded(n)]]
        whole = len(chunk) // PAGE * PAGE
        pieces = [chunk[:whole]] if whole else []
        if rest := len(chunk) - whole:
            scratch.tail[:rest] = chunk[whole:]
            scratch.tail[rest:] = 0
            pieces.append(scratch.tail)
        return 0, len(chunk), pieces
