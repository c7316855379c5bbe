"""What a request may say about itself in `kv_transfer_params`: `{"kvtier": {"store": false, ...}}`."""

import logging
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


class Hints(NamedTuple):
    """One request's wishes. An unknown or ill-typed hint is ignored and said in the log: no request fails of it."""

    store: bool = True  # keep its KV below the device at all
    load: bool = True  # use KV that is kept
    persist: bool = True  # let its KV leave DRAM

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
        for name in [name for name, value in known.items() if not isinstance(value, bool)]:
            logger.warning("kv_transfer_params.kvtier.%s: expected true or false; ignored", name)
            del known[name]
        return cls(**known)
