"""The arena is pinned in pieces that no copy crosses, and works where it cannot be."""

import logging

import pytest

from kvtier.memory.arena import Arena
from kvtier.transfer.pinning import Pinning, pieces
from tests.transfer.simulated import RecordingRegistrar


def test_pieces_begin_where_slots_do_and_cover_the_arena() -> None:
    cut = list(pieces(10 * 12288, 12288, 40_000))
    assert [piece.offset for piece in cut] == [0, 36864, 73728, 110592]
    assert [piece.nbytes for piece in cut] == [36864, 36864, 36864, 12288]


def test_a_slot_larger_than_a_piece_is_a_piece() -> None:
    assert [piece.nbytes for piece in pieces(3 * 12288, 12288, 4096)] == [12288] * 3


def test_all_is_pinned_and_all_is_given_back() -> None:
    arena, registrar = Arena(5, 8192), RecordingRegistrar()
    pinning = Pinning(arena, registrar, piece_nbytes=16384)
    assert pinning.pinned
    assert pinning.nbytes == arena.nbytes == sum(registrar.pieces.values())
    assert min(registrar.pieces) == arena.address
    pinning.close()
    pinning.close()
    assert not registrar.pieces
    arena.close()


def test_what_is_refused_is_said_and_the_rest_stays(caplog: pytest.LogCaptureFixture) -> None:
    arena, registrar = Arena(5, 8192), RecordingRegistrar(limit=2)
    pinning = Pinning(arena, registrar, piece_nbytes=8192)
    assert not pinning.pinned
    assert "16KiB of the arena's 40KiB are pinned" in caplog.text
    assert "CUDA_ERROR_OUT_OF_MEMORY" in caplog.text
    pinning.close()
    assert not registrar.pieces
    arena.close()


def test_without_a_registrar_nothing_is_pinned(caplog: pytest.LogCaptureFixture) -> None:
    arena = Arena(1, 4096)
    with caplog.at_level(logging.WARNING):
        assert not Pinning(arena, None).pinned
    assert "0B of the arena's 4KiB" in caplog.text
    arena.close()
