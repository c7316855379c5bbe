"""What a request may say about itself in `kv_transfer_params`: `{"kvtier": {"store": false, ...}}`."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from kvtier.facts import RequestHints

if TYPE_CHECKING:
    from vllm.v1.request import Request
from kvtier.limited_log import LimitedLog

logger = logging.getLogger(__name__)

_LONGEST_S = 1e9
_QUIET_S = 10.0
_LONGEST_NAME = 64  # of a session; a longer one is known by its hash
_LOOKED_AT = 16  # unknown hints of one request, to name some of them


class Complaints:
    """Says what is wrong with hints: a client that errs in every request makes one line in a while, not one each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = LimitedLog(logger, _QUIET_S, clock)

    def about(self, mistakes: list[str]) -> None:
        """Take the mistakes of one request."""
        if mistakes:
            self._log.warning(None, "kv_transfer_params: %s; ignored", "; ".join(mistakes[:4]))


class Hints(NamedTuple):
    """One request's wishes. An unknown or ill-typed hint is ignored and said in the log: no request fails of it."""

    store: bool = True  # keep its KV below the device at all
    load: bool = True  # use KV that is kept
    persist: bool = True  # let its KV leave DRAM
    session_id: str | None = None  # default: vLLM's own, if the request has one
    priority: int = 0  # higher is more worth keeping
    ttl_s: float | None = None  # nobody will ask again after so many seconds
    session_end: bool = False  # the conversation ends with this request
    report: bool = False  # answer with where its prompt's tokens came from

    @classmethod
    def of(cls, params: object, complaints: Complaints) -> "Hints":
        """Read the hints of a request's `kv_transfer_params`, in a time that does not grow with them."""
        given = params.get("kvtier", {}) if isinstance(params, Mapping) else {}
        if not isinstance(given, Mapping):
            complaints.about([f"kvtier: expected a mapping, got a {type(given).__name__}"])
            return cls()
        known = {name: given[name] for name in cls._fields if name in given}
        foreign = isinstance(known.get("report"), Mapping)  # another engine's, handed on by a proxy
        if foreign:
            del known["report"]
        mistakes = []
        if len(given) > len(known) + foreign:
            looked_at = (name for name in islice(given, _LOOKED_AT) if name not in cls._fields)
            mistakes = [f"kvtier.{str(name)[:32]!r}: unknown hint" for name in islice(looked_at, 3)]
            if len(mistakes) != 1:
                mistakes.append(f"{len(given) - len(known) - foreign} unknown hints in all")
        for name in list(known):
            what, good = _KINDS.get(name, ("true or false", _is_bool))
            if not good(known[name]):
                mistakes.append(f"kvtier.{name}: expected {what}")
                del known[name]
        complaints.about(mistakes)
        return cls(**known)

    def in_session(self, own: object) -> "Hints":
        """Name the session, by vLLM's `own` id if no hint does; of a long name only the hash is kept."""
        session = self.session_id if self.session_id is not None else own
        if not isinstance(session, str):
            return self._replace(session_id=None)
        if len(session) > _LONGEST_NAME:
            session = hashlib.blake2b(session.encode(errors="replace"), digest_size=16).hexdigest()
        return self._replace(session_id=session)

    def facts(self) -> RequestHints:
        """Return what policies are told."""
        return RequestHints(self.session_id, self.priority, self.ttl_s, self.session_end)


def wants_report(request: "Request") -> bool:
    """Whether a request asks for a report, whatever else it says."""
    params = request.kv_transfer_params
    given = params.get("kvtier") if isinstance(params, Mapping) else None
    return isinstance(given, Mapping) and given.get("report") is True


def comes_from_elsewhere(request: "Request") -> bool:
    """Whether another engine has computed a request's prompt, and another connector is still to fetch its KV from there."""
    params = request.kv_transfer_params
    return isinstance(params, Mapping) and bool(params.get("do_remote_prefill"))


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
