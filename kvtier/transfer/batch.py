"""Small transfers of one step, planned together: each remains a transfer of its own, with its own end and failure.

To list runs costs as much for one chunk as for fifty.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from kvtier.transfer.engine import ChunkCopy
from kvtier.transfer.page_map import NO_BLOCK, Listed, PageMap, Runs, Work, works

logger = logging.getLogger(__name__)


class Batch:
    """The copies of several transfers. All of them are planned when the first one starts; where that fails, each is
    planned alone, so that a bad one fails alone.
    """

    def __init__(
        self,
        transfers: Sequence[Sequence[ChunkCopy]],
        layout: PageMap,
        listed: Callable[[Work], Listed],
    ) -> None:
        self._transfers = transfers
        self._layout = layout
        self._listed = listed
        self._planned: list[list[Work]] | None = None

    def works(self, i: int) -> list[Work]:
        """Return what the i-th transfer has to do."""
        if self._planned is None:
            try:
                self._planned = self._plan()
            except Exception:
                logger.exception("copies are not planned together")
                self._planned = []
        return self._planned[i] if self._planned else works(self._transfers[i])

    def _plan(self) -> list[list[Work]]:
        planned: list[list[Work]] = [[] for _ in self._transfers]
        owners: dict[int, list[int]] = {}  # by group: the transfer of each of its chunks
        for i, copies in enumerate(self._transfers):
            for copy in copies:
                owners.setdefault(copy.group, []).append(i)
        for whole in works([copy for copies in self._transfers for copy in copies]):
            ids, starts = np.unique(owners[whole.group], return_index=True)
            for i, work in zip(ids.tolist(), self._split(whole, starts), strict=True):
                planned[i].append(work)
        return planned

    def _split(self, whole: Work, starts: np.ndarray) -> list[Work]:
        """Cut a group's work where the transfers begin."""
        runs, slots, run_nbytes, _ = self._listed(whole)
        ends = [*starts.tolist(), len(whole.slots)]
        cuts = np.searchsorted(runs.chunk, ends).tolist()
        pages = np.add.reduceat(np.count_nonzero(whole.blocks != NO_BLOCK, axis=1), starts).tolist()
        per_page = self._layout.page_nbytes(whole.group)
        split = []
        for a, b, c, d, n in zip(ends, ends[1:], cuts, cuts[1:], pages, strict=False):
            part = Runs(runs.device[c:d], runs.chunk[c:d] - a, runs.offset[c:d], runs.nbytes[c:d])
            listed = Listed(part, slots[c:d], run_nbytes, n * per_page)
            split.append(Work(whole.group, whole.slots[a:b], whole.blocks[a:b], listed))
        return split
