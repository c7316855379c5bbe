"""What kvtier gives back in a request's `kv_transfer_params`: under a key that no other connector has.

Where two connectors give back the same key, vLLM ends. MultiConnector tells none of them that there are others.
"""

import weakref
from collections.abc import Mapping
from itertools import count
from typing import Any

_living: "weakref.WeakSet[Returns]" = weakref.WeakSet()


class Returns:
    """What one of an engine's connectors gives back: `kvtier` is the key of the first, `kvtier_1` that of the next."""

    def __init__(self, engine_id: str | None) -> None:
        self._engine_id = engine_id
        taken = {each.index for each in _living if each._engine_id == engine_id}
        self.index: int = next(i for i in count() if i not in taken)
        _living.add(self)

    def of(
        self, found: Mapping[str, Any] | None, report: Mapping[str, object] | None = None
    ) -> dict[str, Any] | None:
        """Give back what was found of a request, and the report that it asked for.

        It is a fresh mapping, because vLLM adds to it what others give back.
        """
        key = f"kvtier_{self.index}" if self.index else "kvtier"
        told = dict(found or {}) | ({"report": report} if report else {})
        return {key: told} if told else None
