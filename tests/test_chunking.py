import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.chunking import LIMIT_TOKENS, TARGET_NBYTES, auto_chunk_tokens


@pytest.mark.parametrize(
    ("block", "nbytes_per_token", "tokens"),
    [
        (16, 128 << 10, 16),  # Llama 8B, one rank: 2 MiB exactly
        (16, 16 << 10, 128),  # the same over eight ranks
        (16, 40 << 10, 64),  # Llama 70B over eight ranks: 2.5 MiB
        (16, 1 << 10, 256),  # small models stop at the limit
        (128, 1 << 20, 128),  # never less than a block
        (96, 1, 192),  # nor a part of one
        (512, 1, 512),
        (16, 0, 256),
    ],
)
def test_known_models(block: int, nbytes_per_token: int, tokens: int) -> None:
    assert auto_chunk_tokens(block, nbytes_per_token) == tokens


@given(st.integers(1, 1024), st.integers(1, 1 << 22))
def test_the_rule(block: int, nbytes_per_token: int) -> None:
    tokens = auto_chunk_tokens(block, nbytes_per_token)
    assert tokens % block == 0
    assert tokens == block or tokens <= LIMIT_TOKENS
    if tokens > block:
        assert (tokens - block) * nbytes_per_token < TARGET_NBYTES
