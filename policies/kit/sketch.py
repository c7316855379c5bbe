"""How often keys were used not long ago, in little memory."""

from array import array

from kvtier.types import BlockKey

_ROWS = 4
_MAX = 15
_AGE_AT = 10  # uses per counter of a row until all are halved


class Sketch:
    """A count-min sketch whose counters end at 15 and are halved now and then (Einziger et al., 2017).

    It grows with what it is told to expect; growing forgets.
    """

    def __init__(self, expected: int = 1024) -> None:
        self._width = 1 << max(10, expected.bit_length())
        self._counters = array("B", bytes(_ROWS * self._width))
        self._uses = 0

    def expect(self, n: int) -> None:
        """Be wide enough for `n` keys."""
        if n > self._width:
            self.__init__(2 * n)  # type: ignore[misc]  # the same as a new one

    def add(self, key: BlockKey) -> None:
        """Count one use."""
        counters = self._counters
        for i in self._places(key):
            if counters[i] < _MAX:
                counters[i] += 1
        self._uses += 1
        if self._uses >= _AGE_AT * self._width:
            self._halve()

    def estimate(self, key: BlockKey) -> int:
        """Return the uses of a key, too many rather than too few."""
        return min(self._counters[i] for i in self._places(key))

    def _places(self, key: BlockKey) -> tuple[int, int, int, int]:
        h, w, mask = hash(key), self._width, self._width - 1
        return (
            h & mask,
            w + (h * 0x9E3779B1 >> 17 & mask),
            2 * w + (h * 0x85EBCA77 >> 23 & mask),
            3 * w + (h * 0xC2B2AE3D >> 29 & mask),
        )

    def _halve(self) -> None:
        whole = int.from_bytes(self._counters.tobytes(), "little")
        mask = int.from_bytes(b"\x07" * len(self._counters), "little")
        halved = (whole >> 1) & mask
        self._counters = array("B", halved.to_bytes(len(self._counters), "little"))
        self._uses //= 2
