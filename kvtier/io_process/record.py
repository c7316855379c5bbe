"""The record format: one header page, then the encoded payload, padded with zeros to whole pages.

Every bit of a record is under a checksum: the header page under its own, payload and padding under
the one that the header holds. What does not match exactly is CorruptBlock, with the reason.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import xxhash

from kvtier.errors import CorruptBlock
from kvtier.tier import Bytes
from kvtier.types import PAGE

MAX_KEY = 64
FORMAT = 2
"""Of records and of what names their namespace. Directories of this and of older formats may be reclaimed."""

MAGIC = b"kvtier\r\n"

# offset  bytes  field
#      0      8  magic
#      8      2  format version
#     10      2  codec id; a promise for ever, see kvtier.codecs
#     12      4  flags, none yet
#     16     16  namespace
#     32      4  rank
#     36      4  group
#     40      4  shard
#     44      4  zeros
#     48      8  end token
#     56      8  raw bytes of the chunk
#     64      8  stored bytes of the payload, without padding
#     72      1  length of the key
#     73      1  length of the parent's key
#     74     64  key, zero-padded
#    138     64  parent's key, zero-padded
#    202     16  xxh3_128 of the payload and its padding
#    218     16  xxh3_128 of this page with this field zero
#    234   3862  zeros
_LAYOUT = struct.Struct("<8sHHI16sIII4xQQQBB64s64s16s16s")
_CHECKSUM_AT = _LAYOUT.size - 16


class Identity(NamedTuple):
    """What a record must be, to be the one that was asked for."""

    namespace: str
    rank: int
    group: int
    key: bytes
    raw_nbytes: int
    shard: int = 0


class Header(NamedTuple):
    """What a record says of itself."""

    codec: int
    namespace: str
    rank: int
    group: int
    end_token: int
    raw_nbytes: int
    stored_nbytes: int
    key: bytes
    parent: bytes
    checksum: bytes
    shard: int = 0  # what part of the rank's KV this is; 0: all of it, and there is no other yet

    @property
    def nbytes(self) -> int:
        """Length of the whole record."""
        return PAGE + padded(self.stored_nbytes)


def namespace_of(manifest: str) -> str:
    """Name the namespace that `manifest` describes, under this record format."""
    return hashlib.sha256(f"kvtier record {FORMAT}\n{manifest}".encode()).hexdigest()[:32]


def padded(nbytes: int) -> int:
    """Round up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def checksum(*pieces: Bytes) -> bytes:
    """Digest payload and padding, given in one or several pieces."""
    return checksum_of(pieces)


def checksum_of(pieces: Iterable[Bytes]) -> bytes:
    """Digest pieces as they come, in memory that does not grow with them."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def pack(header: Header, page: Bytes) -> None:
    """Fill `page` with the header."""
    if not 0 < len(header.key) <= MAX_KEY or len(header.parent) > MAX_KEY:
        raise ValueError(f"keys have 1 to {MAX_KEY} bytes")
    page[:] = 0
    _LAYOUT.pack_into(
        page,
        0,
        MAGIC,
        FORMAT,
        header.codec,
        0,
        bytes.fromhex(header.namespace),
        header.rank,
        header.group,
        header.shard,
        *header[4:7],  # end token to stored bytes
        len(header.key),
        len(header.parent),
        header.key,
        header.parent,
        header.checksum,
        bytes(16),
    )
    page[_CHECKSUM_AT : _LAYOUT.size] = np.frombuffer(xxhash.xxh3_128_digest(page), np.uint8)


def unpack(page: Bytes) -> Header:
    """Read the header back; a page that is no header, or is not as it was written, is a CorruptBlock."""
    if len(page) != PAGE:
        raise CorruptBlock(f"a header has {PAGE} bytes, not {len(page)}")
    magic, version, codec, flags, namespace, *numbers, key, parent, digest, own = (
        _LAYOUT.unpack_from(page)
    )
    if magic != MAGIC:
        raise CorruptBlock("not a record")
    if version != FORMAT:
        raise CorruptBlock(f"format {version}, expected {FORMAT}")
    blank = page.copy()
    blank[_CHECKSUM_AT : _LAYOUT.size] = 0
    if xxhash.xxh3_128_digest(blank) != own:
        raise CorruptBlock("header checksum differs")
    rank, group, shard, end_token, raw_nbytes, stored_nbytes, key_len, parent_len = numbers
    if flags or not 0 < key_len <= MAX_KEY or parent_len > MAX_KEY:
        raise CorruptBlock("header fields are out of range")
    return Header(
        codec,
        namespace.hex(),
        rank,
        group,
        end_token,
        raw_nbytes,
        stored_nbytes,
        key[:key_len],
        parent[:parent_len],
        digest,
        shard,
    )


def check_identity(header: Header, want: Identity) -> None:
    """Compare a header with what was asked for; another record is a CorruptBlock."""
    for field in Identity._fields:
        if getattr(header, field) != getattr(want, field):
            raise CorruptBlock(f"{field} differs")


def check_payload(header: Header, nbytes: int, payload: Bytes) -> None:
    """Compare the length of the whole record, and payload with padding, with the header; a difference is a CorruptBlock."""
    if nbytes != header.nbytes:
        raise CorruptBlock(f"the record has {nbytes} bytes, expected {header.nbytes}")
    if checksum(payload) != header.checksum:
        raise CorruptBlock("payload checksum differs")
