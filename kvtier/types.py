"""The words that every part of kvtier shares: keys, operations, results. Stdlib only.

Everything that crosses a process is a NamedTuple of plain values: it pickles inside vLLM's own
metadata and msgpacks over the worker's pipe without a schema of its own.
"""

import math
from enum import IntEnum, StrEnum
from typing import NamedTuple, NewType

BlockKey = NewType("BlockKey", bytes)
"""vLLM's `OffloadKey`: the prefix-chained hash that ends a chunk, then its KV-cache group (4 bytes, big endian)."""

TIER0 = 0
"""Index of the arena (DRAM slots) in every list of tiers; lower tiers follow from 1."""

MAX_LOWER_TIERS = 10

NOT_TIERS = HBM, COMPUTED, OTHER = "hbm", "computed", "other"
"""What has prompt tokens beside the tiers: the device's own cache, none, another connector."""

NO_SLOT = -1

PAGE = 4096
"""Bytes of a page of memory, of a record's header, and the unit of a record's size."""


class OpKind(IntEnum):
    """What the brain asks of every rank's I/O process."""

    OPEN = 0  # text: the namespace manifest (JSON). Opens `tier`, starts its scan.
    READ = 1  # record of `key` in `tier` -> verified and decoded into `slot`
    WRITE = 2  # `slot` -> encoded record of `key` in `tier`
    REMOVE = 3  # drop the record of `key` in `tier`; an absent record is a success
    PROBE = 4  # is `tier` well again? MISSING: it is, but what it held was removed
    CANCEL = 5  # drop queued operation `target`, answered CANCELLED unless it already runs; itself always OK
    RESET = 6  # text: the new manifest of `tier`; when answered no record of before can be reached
    RECLAIM = 7  # drop unlocked foreign namespaces, oldest first, until `nbytes` of `tier` are free
    HASTEN = 8  # raise queued operation `target` to `priority`; never answered
    SCORE = 9  # sample the keys in slot `target`; MISSING: how they lie there is not known
    ROOM = 10  # how much the medium of `tier` still takes, in records of `nbytes` each
    ASK = 11  # how many of `keys`, in order, `tier` has one after the other; rank 0 finds out


class Priority(IntEnum):
    """Order in which an I/O process takes queued operations; lower goes first."""

    DEMAND = 0  # a request waits for it
    PREFETCH = 1
    WRITE = 2
    IDLE = 3  # write-behind: only when nothing else is queued, bounded bytes per second


class OpStatus(StrEnum):
    """How an operation ended on one rank. Everything but OK is a miss and a counter."""

    OK = "ok"
    MISSING = "missing"  # no such record
    CORRUPT = "corrupt"  # not the record it should be: removed
    ERROR = "error"  # the operating system or the store said no
    NO_ROOM = "no_room"  # the medium is full, or a quota is used up; nothing is wrong with it
    DEADLINE = "deadline"  # still queued, and no read of its tier was done for its deadline
    CANCELLED = "cancelled"
    DIED = "died"  # the I/O process went away; nothing of it runs any more


class WriteMode(StrEnum):
    """When a chunk goes down into a tier."""

    ON_EVICT = "on_evict"  # when it leaves tier 0
    ON_REUSE = "on_reuse"  # when it was hit a second time
    THROUGH = "through"  # as soon as it is stored
    IDLE = "idle"  # as soon as it is stored, when nothing else is to do


class TierOp(NamedTuple):
    """One operation, sent alike to every rank; `op` identifies it until each rank has answered once."""

    op: int
    kind: OpKind
    tier: int = TIER0
    key: bytes = b""
    slot: int = NO_SLOT
    group: int = 0  # the chunk's KV-cache group: each rank knows its raw bytes per group
    end_token: int = 0  # where the chunk ends in its sequence; kept in the record
    parent: bytes = b""  # key of the chunk before it, empty at the start; kept in the record
    priority: Priority = Priority.DEMAND
    deadline_s: float = math.inf  # a queued READ fails if none of its tier was done for so long
    target: int = 0  # CANCEL, HASTEN: the other operation's `op`; SCORE: a slot, not held for it
    nbytes: int = 0  # RECLAIM: bytes wanted; ROOM: of one record
    text: str = ""  # OPEN, RESET: the namespace manifest
    keys: tuple[bytes, ...] = ()  # ASK: chunks of one prefix


class OpResult(NamedTuple):
    """One rank's only answer to one operation."""

    rank: int
    op: int
    status: OpStatus
    nbytes: int = 0  # READ, WRITE: of the whole record; OPEN, RESET, RECLAIM: foreign ones left
    seconds: float = 0.0  # in service, without the time queued
    error: str = ""  # for people
    codec: str = ""  # WRITE: what the record is encoded with
    score: float = 0.0  # SCORE: the mean L2 norm of the sampled keys
    free: int = -1  # NO_ROOM, ROOM: bytes that the medium still takes; -1: nobody can say
    queued: float = 0.0  # READ, WRITE: seconds until a thread took it
    coded: float = 0.0  # READ, WRITE: of the seconds in service, in the codec and the checksum
    found: int = -1  # ASK: so many of its keys; -1: this rank was not to look


class ScanBatch(NamedTuple):
    """Records that one rank found in one tier at start, in batches; never answers an operation."""

    rank: int
    tier: int
    op: int  # the OPEN that asked for the list: a batch of another one is ignored
    keys: list[bytes]
    nbytes: list[int]  # of each record, as the tier accounts it
    mtimes: list[float]  # seconds since the Unix epoch
    done: bool  # the last batch of this rank and tier


class Placed(NamedTuple):
    """Bytes of one rank's memory for one tier that are on one NUMA node now."""

    rank: int
    tier: int
    node: int
    nbytes: int


class GroupSpec(NamedTuple):
    """One KV-cache group as the brain sees it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    chunk_tokens: int
    window_chunks: int | None  # chunks of its attention window; None: full attention
    nbytes: int  # raw bytes of one chunk on one rank


class Medium(NamedTuple):
    """How fast one tier of one rank is read, as far as that is known before it was measured."""

    read: float  # bytes per second
    latency_s: float = 2e-4
