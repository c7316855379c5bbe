"""Which pages of a mapping are free: segregated fit, and several pieces where no hole is large enough."""

from itertools import islice
from typing import NamedTuple

_LOOKS = 4  # holes of the request's own size class that are tried


class Extent(NamedTuple):
    """Pages that follow each other."""

    start: int
    pages: int


class Extents:
    """Hand pages out and take them back. Not thread-safe.

    A request succeeds if, and only if, so many pages are free: what no hole can hold is given in pieces,
    so that no page is ever lost to fragmentation; it costs pieces, of which a request for n pages has
    at most n. Neighbours that are free become one hole at once; holes are listed by powers of two of
    their size (Knuth, The Art of Computer Programming, vol. 1, 2.5).
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.free = 0
        self._holes: dict[int, int] = {}  # start -> pages
        self._ends: dict[int, int] = {}  # one past its last page -> start
        self._classes: list[dict[int, None]] = [{} for _ in range(pages.bit_length() + 1)]
        if pages:
            self.give([Extent(0, pages)])

    def take(self, pages: int) -> tuple[Extent, ...]:
        """Hand out so many pages in as few pieces as there are fits for; nothing where fewer are free."""
        if pages > self.free:
            return ()
        taken = []
        while pages:
            start = self._fit(pages)
            n = min(pages, self._holes[start])
            taken.append(self._cut(start, n))
            pages -= n
        return tuple(taken)

    def give(self, extents: tuple[Extent, ...] | list[Extent]) -> None:
        """Take pages back."""
        for start, pages in extents:
            end = start + pages
            self.free += pages
            if end in self._holes:
                end += self._drop(end)
            if start in self._ends:
                start = self._ends[start]
                self._drop(start)
            self._add(start, end - start)

    def _fit(self, pages: int) -> int:
        """Find a small hole of at least so many pages, else one of the largest."""
        own = pages.bit_length()
        start: int
        for start in islice(reversed(self._classes[own]), _LOOKS):
            if self._holes[start] >= pages:
                return start
        larger = range(own + 1, len(self._classes))
        for size in (*larger, *range(own, 0, -1)):
            for start in reversed(self._classes[size]):
                return start
        raise AssertionError("free pages, and no hole")

    def _cut(self, start: int, pages: int) -> Extent:
        left = self._drop(start) - pages
        self.free -= pages
        if left:
            self._add(start + pages, left)
        return Extent(start, pages)

    def _add(self, start: int, pages: int) -> None:
        self._holes[start] = pages
        self._ends[start + pages] = start
        self._classes[pages.bit_length()][start] = None

    def _drop(self, start: int) -> int:
        pages = self._holes.pop(start)
        del self._ends[start + pages]
        del self._classes[pages.bit_length()][start]
        return pages
