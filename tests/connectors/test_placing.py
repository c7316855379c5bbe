"""A rank's memory is put on the node of its device, or where the configuration says."""

import os

import pytest

pytest.importorskip("torch")

import torch

from kvtier import topology
from kvtier.arena import Arena
from kvtier.connectors.vllm import placing


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
    ("lower_mib", "free_mib", "filled"),
    [(0, 32, True), (0, 31, False), (2, 48, True), (2, 47, False)],
)
def test_there_must_be_room_for_every_rank(
    lower_mib: int, free_mib: int, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: free_mib << 20)
    arena = Arena(4, 1 << 20)
    placing.settle(arena, (), 8, fill=True, lower_nbytes=lower_mib << 20)
    assert (arena._prefault is not None) == filled
    arena.close()


@pytest.mark.parametrize(("fill", "free"), [(False, 1 << 40), (True, 0)])
def test_memory_that_is_not_there_or_was_not_asked_for_is_not_taken(
    fill: bool, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: free)
    arena = Arena(4, 1 << 20)
    placing.settle(arena, (), 1, fill=fill)
    assert arena.locate().present == 0
    arena.close()
