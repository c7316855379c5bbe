"""A third party's policy, found by `package.module:Class`."""

from collections.abc import Callable
from dataclasses import dataclass

from kvtier.policy import EvictionPolicy
from kvtier.types import BlockKey


@dataclass(frozen=True, slots=True, kw_only=True)
class FadingConfig:
    half_life_s: float
    ghosts: int = 0


class FadingPolicy(EvictionPolicy):
    Config = FadingConfig

    def insert(self, key: BlockKey, parent: BlockKey | None) -> None: ...

    def touch(self, key: BlockKey) -> None: ...

    def remove(self, key: BlockKey) -> None: ...

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        return []
