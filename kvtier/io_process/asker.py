"""Who puts the questions to one tier: threads of their own, so that no question waits behind reads and writes."""

import queue
import threading
import time
from collections.abc import Callable

from kvtier.types import TierOp

_THREADS = 2


class Asker:
    """Answer questions in the order of their receipt. The queue is bounded by the brain, which has few under way."""

    def __init__(self, answer: Callable[[TierOp, int, float], None]) -> None:
        """Let `answer` take each question, the epoch that it was received in, and the seconds that it was queued."""
        self._answer = answer
        self._queue: queue.SimpleQueue[tuple[TierOp, int, float]] = queue.SimpleQueue()
        for i in range(_THREADS):
            threading.Thread(target=self._work, name=f"ask-{i}", daemon=True).start()

    def put(self, op: TierOp, epoch: int) -> None:
        """Queue a question; main thread."""
        self._queue.put((op, epoch, time.monotonic()))

    def _work(self) -> None:
        while True:
            op, epoch, at = self._queue.get()
            self._answer(op, epoch, time.monotonic() - at)
