"""Fetch on arrival what attention will look at: of window groups their window, of full groups everything."""

from collections.abc import Sequence

from kvtier.facts import GroupKeys, RequestFacts
from kvtier.policy import Move, PrefetchPolicy
from kvtier.types import BlockKey


class SlidingWindowPolicy(PrefetchPolicy):
    """A layer with a window of W tokens reads the last W tokens of a prefix only: older chunks stay below.

    Full groups come first: without them the window's chunks are no hit.
    """

    def arrived(self, request: RequestFacts) -> Sequence[Move]:
        groups = sorted(request.groups, key=lambda group: group.window_chunks is not None)
        return [Move(_read(group)) for group in groups]


def _read(group: GroupKeys) -> Sequence[BlockKey]:
    if group.window_chunks is None:
        return group.keys
    return group.keys[max(0, len(group.keys) - group.window_chunks) :]
