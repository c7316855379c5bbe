"""How many reads of one tier the I/O process has at a time; the others wait at the worker's end."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from kvtier.types import Priority, TierOp

_START = 256
_MOST = 4096


class _Waiting(NamedTuple):
    op: TierOp
    at: float  # when it came


class _Handed(NamedTuple):
    priority: Priority
    at: float  # when it was handed over
    deadline_s: float


class Window:
    """Hands reads over, the urgent ones first, and keeps those that do not fit. One thread.

    What is kept can be answered at once, whatever becomes of the process: its slots are not held. The worker looks
    for answers once per step, so the window must hold what the tier reads in one step: it doubles while half of it
    is answered at a time and others wait. A deadline is one of silence: a read is late if none was answered for so
    long. When a read that was handed over is late, the window falls to the `depth` of the tier.
    """

    def __init__(self, depth: int, clock: Callable[[], float]) -> None:
        self.size = max(depth, _START)
        self._depth = depth
        self._clock = clock
        self._waiting: dict[Priority, OrderedDict[int, _Waiting]] = {
            priority: OrderedDict() for priority in Priority
        }
        self._handed: OrderedDict[int, _Handed] = OrderedDict()
        self._counts = dict.fromkeys(Priority, 0)  # of those handed over
        self._answered = 0  # since `adjust`
        self._moved = clock()  # when one was answered last

    def offer(self, op: TierOp) -> None:
        """Keep a read until `take` hands it over."""
        self._waiting[op.priority][op.op] = _Waiting(op, self._clock())

    def take(self) -> list[TierOp]:
        """Hand over what fits: a read waits only for those that are as urgent."""
        taken, now, ahead = [], self._clock(), 0
        for priority, waiting in self._waiting.items():
            ahead += self._counts[priority]
            while waiting and ahead < self.size:
                number, (op, _) = waiting.popitem(last=False)
                self._handed[number] = _Handed(priority, now, op.deadline_s)
                self._counts[priority] += 1
                ahead += 1
                taken.append(op._replace(priority=priority))
        return taken

    def ended(self, number: int) -> None:
        """Note the answer to a read that was handed over."""
        if number in self._handed:
            self._counts[self._handed.pop(number).priority] -= 1
            self._answered += 1
            self._moved = self._clock()

    def adjust(self) -> None:
        """Fit the size to what was answered since the last call."""
        oldest = next(iter(self._handed.values()), None)
        if oldest is not None and self._is_late(oldest.at, oldest.deadline_s):
            self.size = self._depth
        elif self._answered >= self.size // 2 and any(self._waiting.values()):
            self.size = min(2 * self.size, _MOST)
        self._answered = 0

    def cancel(self, number: int) -> bool:
        """Drop a read that waits; False where it does not."""
        return any(waiting.pop(number, None) for waiting in self._waiting.values())

    def hasten(self, number: int, priority: Priority) -> bool:
        """Make a read more urgent; False where the process has it and must be told."""
        for each, waiting in self._waiting.items():
            if number in waiting and priority < each:
                self._waiting[priority][number] = waiting.pop(number)
                return True
        if number in self._handed and priority < self._handed[number].priority:
            before = self._handed[number]
            self._handed[number] = before._replace(priority=priority)
            self._counts[before.priority] -= 1
            self._counts[priority] += 1
        return False

    def late(self) -> list[int]:
        """Drop the reads that waited past their deadline, and name them."""
        late = []
        for waiting in self._waiting.values():
            gone = [n for n, each in waiting.items() if self._is_late(each.at, each.op.deadline_s)]
            for number in gone:
                del waiting[number]
            late += gone
        return late

    def drop(self) -> list[int]:
        """Drop every read that waits, and name them."""
        dropped = [number for waiting in self._waiting.values() for number in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        return dropped

    def forget(self) -> None:
        """Forget what was handed over: who had it is gone."""
        self._handed.clear()
        self._counts = dict.fromkeys(Priority, 0)

    def _is_late(self, at: float, deadline_s: float) -> bool:
        return max(at, self._moved) + deadline_s <= self._clock()
