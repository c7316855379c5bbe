from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.chunking import (
    LEAST_TOKENS,
    LIMIT_TOKENS,
    TARGET_NBYTES,
    auto_chunk_tokens,
    largest_group,
)

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("block", "nbytes_per_token", "tokens"),
    [
        (16, 128 * KIB, 64),  # Llama 8B, one rank: 8 MiB exactly
        (16, 16 * KIB, 256),  # the same over eight ranks: 4 MiB
        (16, 40 * KIB, 256),  # Llama 70B over eight ranks: 10 MiB is nearer than 5
        (16, 47 * KIB, 128),  # Qwen3 235B over eight: 5.9 MiB is nearer than 11.8
        (16, 512 * KIB, 64),  # many heads: 32 MiB, but never fewer tokens
        (16, 1 * KIB, 256),  # small models stop at the limit
        (64, 69 * KIB, 128),
        (128, 1 * MIB, 128),  # never less than a block
        (96, 1, 192),  # of a block that is no power of two, its doubles
        (512, 1, 512),
        (16, 0, 256),
    ],
)
def test_known_models(block: int, nbytes_per_token: int, tokens: int) -> None:
    assert auto_chunk_tokens(block, nbytes_per_token).tokens == tokens


@pytest.mark.parametrize(
    ("window", "dram", "size"),
    [
        (128, None, (128, "no longer than the window of 128 tokens")),
        (100, None, (64, "no longer than the window of 100 tokens")),
        (40, None, (32, "no longer than the window of 40 tokens")),  # rounded up: 48
        (10, None, (16, "no longer than the window of 10 tokens")),
        (1024, None, (256, "nearest to 8MiB")),
        (None, 2 << 30, (256, "nearest to 8MiB")),
        (None, 1 << 30, (128, "no more than 1/256 of DRAM")),
        (1024, 100 << 20, (16, "one block of the engine")),
    ],
)
def test_a_window_and_little_dram_make_it_smaller(
    window: int | None, dram: int | None, size: tuple[int, str]
) -> None:
    assert auto_chunk_tokens(16, 32 * KIB, window=window, dram_nbytes=dram) == size


@given(
    st.integers(1, 1024),
    st.integers(1, 1 << 22),
    st.none() | st.integers(1, 5000),
    st.none() | st.integers(1, 1 << 40),
)
def test_the_rule(block: int, nbytes: int, window: int | None, dram: int | None) -> None:
    tokens = auto_chunk_tokens(block, nbytes, window=window, dram_nbytes=dram).tokens
    doubles = tokens // block
    assert tokens == block * doubles
    assert doubles & (doubles - 1) == 0
    if tokens == block:
        return
    assert tokens <= LIMIT_TOKENS
    assert window is None or tokens < window + block
    assert dram is None or tokens * nbytes * 256 <= dram
    if window is None and dram is None:
        assert tokens >= LEAST_TOKENS or block * 2 > LIMIT_TOKENS
        assert tokens // 2 < LEAST_TOKENS or tokens * nbytes < TARGET_NBYTES * 2**0.5 + nbytes


def test_groups_have_equal_numbers_of_layers() -> None:
    assert largest_group([32]) == 1
    assert largest_group([52, 10]) == Fraction(10, 62), "Gemma 3: seven groups"
    assert largest_group([18, 18]) == Fraction(1, 2)
    assert largest_group([13, 12]) == Fraction(13, 25), "nearly the same: padded"
