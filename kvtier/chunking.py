"""How many tokens make a chunk: one rule for the connector, the commands and the documentation."""

import math
from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

from kvtier.units import format_nbytes

LEAST_TOKENS, LIMIT_TOKENS = 64, 256
TARGET_NBYTES = 8 << 20
_OF_DRAM = 256  # chunks that DRAM has room for, at least


class ChunkSize(NamedTuple):
    """A number of tokens, and why not another one."""

    tokens: int
    why: str


def auto_chunk_tokens(
    block_tokens: int,
    nbytes_per_token: float,
    *,
    window: int | None = None,
    dram_nbytes: int | None = None,
) -> ChunkSize:
    """Choose the power of two in 64..256 tokens, in blocks, whose chunk is nearest to 8 MiB by ratio.

    A chunk is hit whole or not at all, so half of one is computed per request; but each chunk costs time, whatever
    its size. Never less than one block.

    Args:
        block_tokens: Where that is no power of two, its doubles are taken.
        nbytes_per_token: Of the largest KV-cache group, on one rank.
        window: Tokens of the smallest attention window. A chunk that is longer loses blocks while it is decoded.
        dram_nbytes: The capacity that the user stated, on one rank.
    """
    limits = [(LIMIT_TOKENS, "")]
    if window is not None:
        whole = -(-window // block_tokens) * block_tokens
        limits.append((whole, f"no longer than the window of {window} tokens"))
    if dram_nbytes is not None:
        most = int(dram_nbytes / _OF_DRAM / max(1.0, nbytes_per_token))
        limits.append((most, f"no more than 1/{_OF_DRAM} of DRAM"))
    most, why = min(limits)
    tokens = _nearest(block_tokens, nbytes_per_token, most)
    if most < block_tokens:
        why = "one block of the engine"
    elif tokens == _nearest(block_tokens, nbytes_per_token, LIMIT_TOKENS):
        why = f"nearest to {format_nbytes(TARGET_NBYTES)}"
    return ChunkSize(tokens, why)


def largest_group(layers: Collection[int]) -> Fraction:
    """Return the part of a model's layers that the largest KV-cache group has, given the layers of each kind.

    By vLLM's rule groups have equal numbers of layers: as many as the kind that has fewest, unless all have nearly
    the same.
    """
    return Fraction(group_layers(layers), sum(layers))


def group_layers(layers: Collection[int]) -> int:
    """Return the layers of one KV-cache group, given the layers of each kind."""
    return max(layers) if max(layers) < 1.5 * min(layers) else min(layers)


def _nearest(block_tokens: int, nbytes_per_token: float, most: int) -> int:
    sizes = [block_tokens]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    enough = [n for n in sizes if n >= LEAST_TOKENS] or sizes[-1:]
    return min(enough, key=lambda n: abs(math.log2(n * max(1.0, nbytes_per_token) / TARGET_NBYTES)))
