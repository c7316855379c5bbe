"""A rank's memory is put on the node of its device, or where the configuration says."""

import os

import pytest

pytest.importorskip("vllm")

import torch

from kvtier import topology
from kvtier.connectors.vllm import placing
from kvtier.memory.arena import Arena


@pytest.mark.parametrize(
    ("configured", "own", "chosen"),
    [
        (None, 1, (1,)),
        (None, None, ()),
        ((2,), 0, (2,)),
        ((0, 1), 1, (1,)),  # each rank its own
        ((2, 3), 0, (2, 3)),
        ((2,), None, (2,)),
    ],
)
def test_nodes(
    configured: tuple[int, ...] | None, own: int | None, chosen: tuple[int, ...]
) -> None:
    assert placing.nodes_for(configured, own) == chosen


def test_the_cpu_s_node_is_where_the_process_runs() -> None:
    expected = topology.node_of_cpus(os.sched_getaffinity(0))
    assert placing.own_node(torch.device("cpu")) == expected


def test_what_is_not_bound_is_said_and_what_has_room_is_filled_in(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(4, 1 << 20)
    arena.refused = "mbind: Operation not permitted"
    placing.settle(arena, (1, 2), 1, fill=True)
    assert "not bound to NUMA node 1, 2: mbind: Operation not permitted" in caplog.text
    assert arena._prefault is not None
    arena._prefault.wait()
    assert arena.locate().absent == 0
    arena.close()


@pytest.mark.parametrize(
    ("arena_mib", "lower_mib", "free_mib", "taken_mib", "enough"),
    [
        (4, 0, 32, 0, True),
        (4, 0, 31, 0, False),
        (4, 2, 48, 0, True),
        (4, 2, 47, 0, False),
        (4, 0, 4, 28, True),  # the last of eight ranks: the others have theirs
        (4, 2, 6, 28, True),
        (4, 0, 4, 27, False),
        (4, 0, 3, 500, False),  # its own is not there
        (0, 2, 16, 0, True),  # an arena of explicit huge pages
        (0, 2, 15, 0, False),
    ],
)
def test_there_must_be_room_for_every_rank(
    arena_mib: int,
    lower_mib: int,
    free_mib: int,
    taken_mib: int,
    enough: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: free_mib << 20)
    monkeypatch.setattr(placing, "taken_by_others", lambda owner: taken_mib << 20)
    assert placing.fits(arena_mib << 20, lower_mib << 20, 8, "server") == enough


def test_memory_that_was_not_asked_for_is_not_taken() -> None:
    arena = Arena(4, 1 << 20)
    placing.settle(arena, (), 1, fill=False)
    assert arena.locate().present == 0
    arena.close()
