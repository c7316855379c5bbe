"""What every trace format answers to, and what the drawn parts of a trace are drawn from."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from kvtier.trace.trace import Ids, Row

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What a file does not say and is drawn instead, from one seed.

    `session_rate` starts sessions that carry no wall-clock start, as a Poisson process. The rest is the
    prefix model of files that tell lengths only, see `kvtier.trace.prefixes`.
    """

    seed: int = 0
    session_rate: float = 0.02  # sessions per second
    continues: float = 0.5  # share of requests that continue a conversation where one fits
    systems: int = 8  # shared system prompts
    system_tokens: int = 1024
    memory_s: float = 3600.0  # a conversation idle for longer is never continued

    def rng(self) -> random.Random:
        """Return a fresh generator."""
        return random.Random(self.seed)


class TraceFormat(ABC):
    """Parse the lines of one file, in order; may keep state from line to line."""

    block_tokens: int  # tokens of one block id

    @classmethod
    @abstractmethod
    def recognises(cls, line: bytes) -> bool:
        """Whether `line` could be the first of such a file."""

    @abstractmethod
    def parse(self, line: bytes) -> Row | None:
        """Return the request in a line, None for a heading.

        Raises:
            ValueError: the row is malformed; the message says how.
        """


def ids(blocks: list[int], prompt_tokens: int, block_tokens: int) -> Ids:
    """Check the block ids of a prompt; those that cannot be of so many tokens are a ValueError."""
    if len(blocks) > -(-prompt_tokens // block_tokens):
        raise ValueError(f"{len(blocks)} blocks of {block_tokens} for {prompt_tokens} tokens")
    if len(set(blocks)) != len(blocks):
        raise ValueError("an id stands twice in one prefix")
    if blocks and min(blocks) < 0:
        raise ValueError("a negative id")
    return np.array(blocks, np.int64)
