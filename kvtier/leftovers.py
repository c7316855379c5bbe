"""Containers that nobody uses any more, emptied bit by bit.

To free a million entries at once stops the engine for a tenth of a second.
"""

from collections import deque
from typing import Any

Container = dict[Any, Any] | list[Any] | deque[Any]


class Leftovers:
    """Whoever leaves containers here calls `free` now and then, as often as new entries come."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: list[Container] = []

    def __len__(self) -> int:
        """Count the containers."""
        return len(self._left)

    def leave(self, *containers: Container) -> None:
        """Take containers whose entries are to be freed."""
        self._left += containers

    def free(self, n: int) -> None:
        """Free about `n` entries."""
        while self._left and n > 0:
            last = self._left[-1]
            if len(last) <= n:
                n -= len(last) + 1
                self._left.pop()
            elif isinstance(last, list):
                del last[-n:]
                return
            else:
                pop = last.popitem if isinstance(last, dict) else last.pop
                for _ in range(n):
                    pop()
                return
