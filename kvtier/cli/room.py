"""What a tier has room for: chunks of a model, as the connector would make them."""

from typing import NamedTuple

from kvtier.chunking import auto_chunk_tokens
from kvtier.cli.geometry import Geometry
from kvtier.config import Config, TierConfig, default_dram_nbytes, share
from kvtier.errors import ConfigError
from kvtier.types import PAGE
from kvtier.units import format_nbytes


class Chunk(NamedTuple):
    """One chunk of one KV-cache group on one rank."""

    tokens: int
    nbytes: int
    slot_nbytes: int
    record_nbytes: int  # on a lower tier, if the codec saves nothing
    why: str = ""  # not another number of tokens


def chunk_of(config: Config, geometry: Geometry, block_tokens: int, ranks: int) -> Chunk:
    """Size a chunk as the connector would; `chunk_tokens` that do not fit the engine's block are a ConfigError."""
    refuse_odd_chunks(config, block_tokens)
    if config.chunk_tokens is not None:
        tokens, why = config.chunk_tokens, "chunk_tokens"
    else:
        dram = config.tiers[0].capacity
        size = auto_chunk_tokens(
            block_tokens,
            geometry.group_nbytes_per_token,
            window=geometry.window,
            dram_nbytes=None if dram is None else share(dram, ranks),
        )
        tokens, why = size.tokens, f"auto: {size.why}"
    nbytes = tokens * geometry.group_nbytes_per_token
    slot_nbytes = -(-nbytes // PAGE) * PAGE
    return Chunk(tokens, nbytes, slot_nbytes, slot_nbytes + PAGE, why)


def refuse_odd_chunks(config: Config, block_tokens: int) -> None:
    """Raise a ConfigError for `chunk_tokens` that are no multiple of the engine's block."""
    tokens = config.chunk_tokens
    if tokens is not None and tokens % block_tokens:
        raise ConfigError(
            f"chunk_tokens: {tokens} is not a multiple of the engine's block of {block_tokens} tokens; "
            f"use {-(-tokens // block_tokens) * block_tokens} or auto"
        )


def chunks_held(tier: TierConfig, chunk: Chunk, index: int, sharers: int) -> int:
    """Count the chunks the tier at `index` has room for, if its codec saves nothing and so many ranks share it.

    Raises:
        ConfigError: there is no room for one.
    """
    nbytes = share(tier_nbytes(tier), sharers)
    held = nbytes // (chunk.record_nbytes if index else chunk.slot_nbytes)
    if held < 1:
        raise ConfigError(
            f"tiers[{index}].capacity: {format_nbytes(nbytes)} per rank has no room for one chunk of "
            f"{format_nbytes(chunk.slot_nbytes)}"
        )
    return held


def tokens_of(chunks: int, chunk: Chunk, geometry: Geometry) -> int:
    """Return the tokens of a prefix that so many chunks hold: each of the groups that keep all needs its own."""
    return chunks // max(1, geometry.full_groups) * chunk.tokens


def tier_nbytes(tier: TierConfig) -> int:
    """Return a tier's capacity on this node, for all ranks there, the automatic one where none is given."""
    return default_dram_nbytes(1) if tier.capacity is None else tier.capacity
