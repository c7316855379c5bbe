"""What a codec keeps beside the records: records too, under keys that no chunk has."""

import threading

import numpy as np

from kvtier.codec import Shelf
from kvtier.errors import CorruptBlock, TierError
from kvtier.io_process import record
from kvtier.io_process.buffers import aligned
from kvtier.io_process.record import Header, Identity, padded
from kvtier.tier import Tier
from kvtier.types import PAGE

PREFIX = b"\0kvtier shelf "
MAX_NBYTES = 2 << 20


class TierShelf(Shelf):
    """Keep them in a tier, for one namespace and rank; the brain's accounting does not see them."""

    def __init__(self, tier: Tier, namespace: str, rank: int) -> None:
        self._tier = tier
        self._namespace = namespace
        self._rank = rank
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        key, header, content = _key(name), aligned(PAGE), aligned(MAX_NBYTES)
        nbytes = self._tier.read(key, [header, content])
        if not nbytes:
            return None
        found = record.unpack(header)
        stored = found.stored_nbytes
        if stored > MAX_NBYTES:
            raise CorruptBlock(f"{stored} bytes are too many for {name!r}")
        record.check_identity(found, Identity(self._namespace, self._rank, 0, key, stored))
        record.check_payload(found, nbytes, content[: padded(stored)])
        return content[:stored].tobytes()

    def write(self, name: str, content: bytes) -> bool:
        # A name means one content for ever: two that ask for it must not both get it.
        with self._lock:
            try:
                return not self._taken(name) and self._put(name, content)
            except TierError:
                return False

    def _taken(self, name: str) -> bool:
        try:
            return self.read(name) is not None
        except CorruptBlock:
            return False

    def _put(self, name: str, content: bytes) -> bool:
        key, page, payload = _key(name), aligned(PAGE), aligned(padded(len(content)))
        payload[: len(content)] = np.frombuffer(content, np.uint8)
        n, digest = len(content), record.checksum(payload)
        header = Header(0, self._namespace, self._rank, 0, 0, n, n, key, b"", digest)
        record.pack(header, page)
        return self._tier.write(key, [page, payload]) > 0


def _key(name: str) -> bytes:
    return PREFIX + name.encode()
