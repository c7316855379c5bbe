"""What of a request's chunks is of use together: the windows go with the full groups, in whole and in part."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from kvtier.brain.groups import Groups
from kvtier.brain.index import TIERS, Index
from kvtier.brain.requests import Request
from kvtier.types import BlockKey

# The engine waits while a part is sought: a look costs the length of the windows, a part the length of the hit.
_MOST_LOOKS = 512
_MOST_PARTS = 16


def shorter_parts(
    index: Index,
    groups: Groups,
    request: Request,
    wanted: Sequence[BlockKey],
    most: int,
    counts: Callable[[BlockKey], bool],
) -> Iterator[list[BlockKey]]:
    """Yield each shorter part of a hit, the longest first, of which at most `most` chunks, and not none, count.

    A part is what the full groups have up to some token, and the windows of the others before that token. After so
    many looks there is none.
    """
    spans = groups.spans(request, wanted)
    full = sorted((spans[key][1], key) for key in spans if groups.group(key).window_chunks is None)
    keys = [key for _, key in full]
    counted = [0, *accumulate(map(counts, keys))]
    looks, parts = _MOST_LOOKS, _MOST_PARTS
    for n in range(len(full) - 1, 0, -1):
        if not (most > 0 and looks and parts):
            return
        end = full[n - 1][0]
        if full[n][0] == end or counted[n] > most:
            continue
        windows = _windows(index, groups, request, end)
        if windows is None:
            continue
        looks -= 1
        if 0 < counted[n] + sum(map(counts, windows)) <= most:
            parts -= 1
            yield [*keys[:n], *windows]


def usable(index: Index, groups: Groups, request: Request) -> set[BlockKey]:
    """Return what a request can use of its keys: what the full groups have in any tier, and the windows before its end."""
    reach = min(_reach(index, groups, request))
    found: set[BlockKey] = set()
    for group, keys in zip(groups.specs, request.groups, strict=True):
        last = min(len(keys), reach // group.chunk_tokens)
        first = 0 if group.window_chunks is None else max(0, last - group.window_chunks)
        found.update(keys[first:last])
    return found


def _reach(index: Index, groups: Groups, request: Request) -> Iterator[int]:
    """Yield for each group the tokens that it could give; for one with a window, all."""
    for group, keys in zip(groups.specs, request.groups, strict=True):
        n = len(keys)
        if group.window_chunks is None:
            flags = map(index.flags_of, keys)
            n = next((i for i, flag in enumerate(flags) if not flag & TIERS), n)
        yield n * group.chunk_tokens


def _windows(index: Index, groups: Groups, request: Request, end: int) -> list[BlockKey] | None:
    """Return the chunks that window groups need for a hit up to token `end`; None if not all are in some tier."""
    windows: list[BlockKey] = []
    for group, keys in zip(groups.specs, request.groups, strict=True):
        if group.window_chunks is not None:
            n = end // group.chunk_tokens
            window = keys[max(0, n - group.window_chunks) : n]
            if end % group.chunk_tokens or len(keys) < n:
                return None
            if not all(index.flags_of(key) & TIERS for key in window):
                return None
            windows += window
    return windows
