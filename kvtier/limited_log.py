"""A log that one cause cannot flood."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Hashable

_MOST = 256


class LimitedLog:
    """Speaks of each cause once in `every_s`; the next line of it says how many were left out. Any thread.

    Of causes only so many are told apart; further ones count as one.
    """

    def __init__(
        self, logger: logging.Logger, every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._causes: dict[Hashable, tuple[float, int]] = {}  # when it is due again, lines left out

    def warning(self, cause: Hashable, text: str, *args: object) -> None:
        """Log a line, unless one of its cause was logged a short while ago."""
        self._say(logging.WARNING, cause, text % args, None)

    def traced(self, cause: Hashable, text: str, *args: object) -> None:
        """Log an error with the trace of the exception that is being handled, as rarely."""
        self._say(logging.ERROR, cause, text % args, sys.exception())

    def _say(self, level: int, cause: Hashable, line: str, exc: BaseException | None) -> None:
        left_out = self._left_out(cause)
        if left_out is not None:
            more = f" (and {left_out} more before)" if left_out else ""
            self._logger.log(level, "%s%s", line, more, exc_info=exc)

    def _left_out(self, cause: Hashable) -> int | None:
        """Return how many lines were left out before the one that is due now; None: it is not."""
        now = self._clock()
        with self._lock:
            if cause not in self._causes and len(self._causes) >= _MOST:
                cause = None
            due, left_out = self._causes.get(cause, (now, 0))
            if now < due:
                self._causes[cause] = due, left_out + 1
                return None
            self._causes[cause] = now + self._every_s, 0
            return left_out
