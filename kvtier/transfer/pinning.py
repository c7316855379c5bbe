"""The arena, pinned for the device in pieces: single registrations of hundreds of GiB fail on some hosts."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

from kvtier.memory.arena import Arena
from kvtier.memory.placement import HUGE_PAGE
from kvtier.types import PAGE
from kvtier.units import format_nbytes

logger = logging.getLogger(__name__)

PIECE_NBYTES = 16 << 30


class Registrar(ABC):
    """Pins memory of this process."""

    @abstractmethod
    def register(self, address: int, nbytes: int) -> None:
        """Pin a piece.

        Raises:
            OSError: it cannot be pinned.
        """

    @abstractmethod
    def unregister(self, address: int) -> None:
        """Give back the piece that begins there."""


class Piece(NamedTuple):
    """A part of the arena, from its beginning."""

    offset: int
    nbytes: int


class Pinning:
    """Pins an arena at once; `pinned` says whether all of it is. Without a registrar nothing is.

    What cannot be pinned still works: copies of it are slower and block the thread that starts them.
    """

    def __init__(
        self, arena: Arena, registrar: Registrar | None, piece_nbytes: int = PIECE_NBYTES
    ) -> None:
        self._registrar = registrar
        self._addresses: list[int] = []
        self.nbytes = 0  # that are pinned
        self.pinned = registrar is not None and self._pin(arena, registrar, piece_nbytes)
        if not self.pinned:
            logger.warning(
                "%s of the arena's %s are pinned: copies to and from the device are slower",
                format_nbytes(self.nbytes),
                format_nbytes(arena.nbytes),
            )

    def close(self) -> None:
        """Give every piece back; idempotent."""
        while self._addresses and self._registrar is not None:
            try:
                self._registrar.unregister(self._addresses.pop())
            except OSError as exc:
                logger.warning("a piece of the arena stays pinned: %s", exc)
        self.nbytes = 0

    def _pin(self, arena: Arena, registrar: Registrar, piece_nbytes: int) -> bool:
        page = HUGE_PAGE if arena.huge else PAGE
        for piece in pieces(arena.nbytes, lcm(arena.slot_nbytes, page), piece_nbytes):
            try:
                registrar.register(arena.address + piece.offset, piece.nbytes)
            except OSError as exc:
                logger.warning(
                    "%s of the arena at %s: %s",
                    format_nbytes(piece.nbytes),
                    format_nbytes(piece.offset),
                    exc,
                )
                return False
            self._addresses.append(arena.address + piece.offset)
            self.nbytes += piece.nbytes
        return True


def pieces(nbytes: int, step: int, limit: int) -> Iterator[Piece]:
    """Cut an arena at multiples of `step`, where both a slot and a page begin: no copy crosses a cut."""
    step *= max(1, limit // step)
    for offset in range(0, nbytes, step):
        yield Piece(offset, min(step, nbytes - offset))
