"""How many tokens make a chunk: one rule for the connector, the simulator and `kvtier config check`."""

LIMIT_TOKENS = 256
TARGET_NBYTES = 2 << 20


def auto_chunk_tokens(block_tokens: int, nbytes_per_token: int) -> int:
    """Return the smallest multiple of the block whose chunk reaches TARGET_NBYTES on one rank.

    Never more than LIMIT_TOKENS, because a chunk is hit whole or not at all; never less than one block.
    """
    wanted = -(-TARGET_NBYTES // (block_tokens * max(1, nbytes_per_token)))
    return block_tokens * max(1, min(wanted, LIMIT_TOKENS // block_tokens))
