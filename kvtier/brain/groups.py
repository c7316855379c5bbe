"""The KV-cache groups of a model, and where a chunk of each stands in its sequence."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtier.brain.requests import Request
from kvtier.facts import GroupKeys
from kvtier.types import BlockKey, GroupSpec


class Place(NamedTuple):
    """Where a chunk stands in its sequence."""

    parent: BlockKey | None
    end: int


Spot = tuple[BlockKey | None, int]  # a `Place` for loops over every chunk


class Groups:
    """The KV-cache groups: turns a chunk's index in a request into its place."""

    def __init__(self, groups: Sequence[GroupSpec]) -> None:
        self.specs = tuple(groups)
        self._positions = {g.index.to_bytes(4, "big"): i for i, g in enumerate(groups)}

    def knows(self, key: BlockKey) -> bool:
        """Whether a key is of one of these groups."""
        return key[-4:] in self._positions

    def group(self, key: BlockKey) -> GroupSpec:
        """Return a key's group."""
        return self.specs[self._positions[key[-4:]]]

    def spans(self, request: Request, keys: Sequence[BlockKey]) -> dict[BlockKey, tuple[int, int]]:
        """Return the first and the end token of each key that is the request's."""
        spans = {}
        for key in keys:
            i = request.places.get(key)
            tokens = self.group(key).chunk_tokens
            if i is not None:
                spans[key] = (i * tokens, (i + 1) * tokens)
            elif end := request.tails.get(key):
                spans[key] = (end // tokens * tokens, end)
        return spans

    def spot(self, request: Request, key: BlockKey) -> Spot | None:
        """Return where a key stands in a request, as a plain pair; None if it is not one of its keys."""
        i = request.places.get(key)
        if i is None:
            return self.tail(request, key) if key in request.tails else None
        position = self._positions[key[-4:]]
        return self.at(request.groups[position], position, i)

    def tail(self, request: Request, key: BlockKey) -> Place:
        """Return the place of a key that ends inside a chunk: behind the whole chunks before its end."""
        end, position = request.tails[key], self._positions[key[-4:]]
        group = self.specs[position]
        before = request.groups[position][: end // group.chunk_tokens]
        rooted = not before or group.window_chunks is not None
        return Place(None if rooted else before[-1], end)

    def spots(self, request: Request, keys: Sequence[BlockKey]) -> list[Spot | None]:
        """Return the `spot` of each key."""
        if len(self.specs) > 1 or self.specs[0].window_chunks is not None:
            return [self.spot(request, key) for key in keys]
        prefix, tokens = request.groups[0], self.specs[0].chunk_tokens
        return [
            None if i is None else (prefix[i - 1] if i else None, (i + 1) * tokens)
            for i in map(request.places.get, keys)
        ]

    def keys(self, groups: Sequence[Sequence[BlockKey]]) -> tuple[GroupKeys, ...]:
        """Return a request's keys with what their groups are."""
        return tuple(
            GroupKeys(keys, group.chunk_tokens, group.window_chunks)
            for group, keys in zip(self.specs, groups, strict=True)
        )

    def placing(self, keys: Sequence[BlockKey], position: int) -> Callable[[int], Place]:
        """Return what gives the place of chunk `i` of a group's keys."""
        return lambda i: self.at(keys, position, i)

    def at(self, keys: Sequence[BlockKey], position: int, i: int) -> Place:
        """Return the place of chunk `i` of a group; a window's chunks have no parents."""
        group = self.specs[position]
        rooted = i == 0 or group.window_chunks is not None
        return Place(None if rooted else keys[i - 1], (i + 1) * group.chunk_tokens)
