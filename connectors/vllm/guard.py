"""The fuse: a bug of ours turns kvtier off and leaves the engine running."""

import logging
from collections.abc import Callable
from typing import TypeVar

from kvtier.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Guard:
    """Runs hooks until one raises; from then on every hook answers its default. One per process."""

    def __init__(self) -> None:
        self.broken = ""

    def run(self, hook: Callable[[], T], default: T) -> T:
        """Run a hook, or answer `default` when kvtier is off or goes off here."""
        return default if self.broken else self.always(hook, default)

    def always(self, hook: Callable[[], T], default: T) -> T:
        """Run a hook also when kvtier is off, for what vLLM needs to go on; answer `default` where it raises."""
        try:
            return hook()
        except Exception as exc:
            self.trip(exc)
            return default

    def trip(self, cause: Exception | str) -> None:
        """Turn kvtier off, once; with the trace of an exception that is being handled and says too little itself."""
        if self.broken:
            return
        bug = isinstance(cause, Exception) and not isinstance(cause, ConfigError)
        self.broken = repr(cause) if bug else str(cause)
        logger.error(
            "kvtier has turned itself off: %s. The engine goes on without it; restart to turn it on again%s.",
            cause,
            ", and please report this" if bug else "",
            exc_info=bug,
        )
