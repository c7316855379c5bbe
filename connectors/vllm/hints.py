"""What a request may say about itself in `kv_transfer_params`: `{"kvtier": {"store": false, ...}}`."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from kvtier.facts import RequestHints

logger = logging.getLogger(__name__)

_LONGEST_S = 1e9


class Hints(NamedTuple):
    """One request's wishes. An unknown or ill-typed hint is ignored and said in the log: no request fails of it."""

    store: bool = True  # keep its KV below the device at all
    load: bool = True  # use KV that is kept
    persist: bool = True  # let its KV leave DRAM
    session_id: str | None = None  # default: vLLM's own, if the request has one
    priority: int = 0  # higher is more worth keeping
    ttl_s: float | None = None  # nobody will ask again after so many seconds
    session_end: bool = False  # the conversation ends with this request

    @classmethod
    def of(cls, params: dict[str, Any] | None) -> "Hints":
        """Read the hints of a request's `kv_transfer_params`."""
        given = (params or {}).get("kvtier", {})
        if not isinstance(given, dict):
            logger.warning("kv_transfer_params.kvtier: expected a mapping, got %r; ignored", given)
            return cls()
        known = {name: value for name, value in given.items() if name in cls._fields}
        for name in given.keys() - known.keys():
            logger.warning("kv_transfer_params.kvtier.%s: unknown hint; ignored", name)
        for name in list(known):
            what, good = _KINDS.get(name, ("true or false", _is_bool))
            if not good(known[name]):
                logger.warning("kv_transfer_params.kvtier.%s: expected %s; ignored", name, what)
                del known[name]
        return cls(**known)

    def facts(self) -> RequestHints:
        """Return what policies are told."""
        return RequestHints(self.session_id, self.priority, self.ttl_s, self.session_end)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1 << 31


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= _LONGEST_S


_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "session_id": ("a text of 1 to 256 characters", _is_text),
    "priority": ("a whole number", _is_whole),
    "ttl_s": ("a number of seconds", _is_seconds),
}
