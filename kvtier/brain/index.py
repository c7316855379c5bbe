"""What the brain knows of every chunk: its state and where it is, one row each in columns of plain numbers.

Columns instead of an object per chunk: a million objects would make Python's collector stop the
engine for tenths of a second, and cost more than 300 bytes each. Rows are reused.
"""

import math
from array import array
from collections.abc import Iterable
from enum import StrEnum

from kvtier.leftovers import Leftovers
from kvtier.types import MAX_LOWER_TIERS, NO_SLOT, BlockKey

# The flags column: bit t says that tier t holds the chunk, readable on every rank.
IN_TIER0 = 1
TIERS = (1 << (MAX_LOWER_TIERS + 1)) - 1
STORING = 1 << 12  # a slot is claimed, and the copy from the device into it is under way
LEAVING = 1 << 13  # in tier 0, and being written down: the slot is free with the last answer
VOLATILE = 1 << 14  # never leaves tier 0
HIT = 1 << 15  # was hit since it came


class ChunkState(StrEnum):
    """Where a chunk is on its way. Each state has one verb of `Residency` in and out for success and for failure."""

    ABSENT = "absent"
    STORING = "storing"  # claimed -> `arrived` or `abandon`
    FILLING = "filling"  # claimed, a READ into its slot is under way -> `arrived` or `abandon`
    RESIDENT = "resident"  # readable in tier 0 -> `leave`, `expel` or `drop`
    LEAVING = "leaving"  # still readable in tier 0 -> `expel`, or `rescue` where it is wanted again
    BELOW = "below"  # in lower tiers only -> `claim`, or `erase` tier by tier


_BELOW = TIERS & ~IN_TIER0
_NO_SCORE = math.nan


class Index:
    """Rows by key. The columns are public: the brain reads them in its hot loops; `Residency` alone writes them.

    A row lives as long as a tier holds the chunk or a slot is claimed for it. A slot without
    IN_TIER0 means that the chunk is on its way into it.
    """

    __slots__ = (
        "_leftovers",
        "_spare",
        "ends",
        "flags",
        "parents",
        "read",
        "rows",
        "scores",
        "sizes",
        "slots",
        "unlinked",
    )

    def __init__(self, lower: int) -> None:
        self.sizes = [array("Q") for _ in range(lower)]  # bytes of its record per lower tier
        self._leftovers = Leftovers()
        self._forget()

    def clear(self) -> None:
        """Forget every chunk, at once; `tidy` frees the memory."""
        self._leftovers.leave(self.rows, self.parents)
        self._forget()

    def tidy(self, n: int) -> None:
        """Free about `n` entries of what was forgotten."""
        self._leftovers.free(n)

    def _forget(self) -> None:
        self.rows: dict[BlockKey, int] = {}
        self.flags = array("H")
        self.slots = array("i")
        self.ends = array("i")  # end token; 0: found by a scan, place not known yet
        self.parents: list[BlockKey | None] = []
        self.sizes = [array("Q") for _ in self.sizes]
        self.read = array("H")  # bit t: the record of tier t was read since it is there
        self.scores = array("f")  # of a scorer, 0 to 1; NaN: none
        self.unlinked = 0  # rows whose place is not known yet
        self._spare = array("i")

    def __len__(self) -> int:
        return len(self.rows)

    def state(self, row: int) -> ChunkState:
        """Return the state of the chunk in a row."""
        flags = self.flags[row]
        if flags & IN_TIER0:
            return ChunkState.LEAVING if flags & LEAVING else ChunkState.RESIDENT
        if self.slots[row] != NO_SLOT:
            return ChunkState.STORING if flags & STORING else ChunkState.FILLING
        return ChunkState.BELOW if flags & TIERS else ChunkState.ABSENT

    def add(self, key: BlockKey, parent: BlockKey | None, end: int) -> int:
        """Give `key` a row that no tier holds yet and return it."""
        row = self._spare.pop() if self._spare else self._grow()
        self.rows[key] = row
        self.parents[row] = parent
        self.ends[row] = end
        self.unlinked += not end
        return row

    def link(self, row: int, parent: BlockKey | None, end: int) -> None:
        """Fill in the place of a chunk that a scan found."""
        self.unlinked -= not self.ends[row]
        self.parents[row] = parent
        self.ends[row] = end

    def prune(self, key: BlockKey) -> None:
        """Give the row back if no tier holds the chunk and no slot waits for it."""
        row = self.rows[key]
        if not self.flags[row] & TIERS and self.slots[row] == NO_SLOT:
            self._free(key, row)

    def resident(self, key: BlockKey) -> bool:
        """Whether tier 0 holds the chunk, readable."""
        row = self.rows.get(key)
        return row is not None and self.flags[row] & IN_TIER0 != 0

    def residents(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """List those of `keys` that tier 0 holds, readable."""
        get, flags = self.rows.get, self.flags
        return [key for key in keys if (row := get(key)) is not None and flags[row] & IN_TIER0]

    def vacate(self, keys: Iterable[BlockKey]) -> list[int]:
        """Take chunks out of tier 0, with `prune`, and return their slots."""
        freed = []
        rows, flags, slots, spare = self.rows, self.flags, self.slots, self._spare
        scores, ends, nan = self.scores, self.ends, _NO_SCORE
        for key in keys:
            row = rows[key]
            freed.append(slots[row])
            slots[row] = NO_SLOT
            if flags[row] & _BELOW:
                flags[row] &= ~(IN_TIER0 | LEAVING)
                continue
            del rows[key]  # as in `_free`, without a call for each; the parent is overwritten
            if not ends[row]:
                self.unlinked -= 1
            flags[row] = 0
            scores[row] = nan
            spare.append(row)
        return freed

    def place(
        self, places: Iterable[tuple[BlockKey, tuple[BlockKey | None, int]]], slots: Iterable[int]
    ) -> None:
        """Give chunks that have no row yet, or one without a slot, their slots and places: they are STORING."""
        rows, ends, parents, owned = self.rows, self.ends, self.parents, self.slots
        flags, spare = self.flags, self._spare
        for slot, (key, (parent, end)) in zip(slots, places, strict=False):
            row = rows.get(key)
            if row is None:
                rows[key] = row = spare.pop() if spare else self._grow()
                parents[row] = parent
                ends[row] = end
                flags[row] = STORING
            else:
                if not ends[row]:
                    self.link(row, parent, end)
                flags[row] |= STORING
            owned[row] = slot

    def flags_of(self, key: BlockKey) -> int:
        """Return the flags of a chunk, 0 where there is none."""
        row = self.rows.get(key)
        return 0 if row is None else self.flags[row]

    def end(self, key: BlockKey) -> int:
        """Return where a chunk ends in its sequence, 0 if that is not known."""
        row = self.rows.get(key)
        return 0 if row is None else self.ends[row]

    def score(self, key: BlockKey) -> float | None:
        """Return a chunk's score, None if it has none."""
        row = self.rows.get(key)
        score = math.nan if row is None else self.scores[row]
        return None if math.isnan(score) else score

    def _free(self, key: BlockKey, row: int) -> None:
        del self.rows[key]
        self.unlinked -= not self.ends[row]
        self.flags[row] = 0
        self.parents[row] = None
        self.scores[row] = _NO_SCORE
        self._spare.append(row)

    def _grow(self) -> int:
        self.flags.append(0)
        self.slots.append(NO_SLOT)
        self.ends.append(0)
        self.parents.append(None)
        self.read.append(0)
        self.scores.append(math.nan)
        for column in self.sizes:
            column.append(0)
        return len(self.flags) - 1
