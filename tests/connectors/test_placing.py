"""A rank's memory is put on the node of its device, or where the configuration says."""

import os

import pytest

pytest.importorskip("vllm")

import torch

from kvtier import topology
from kvtier.arena import Arena
from kvtier.config import load
from kvtier.connectors.vllm import placing
from kvtier.connectors.vllm.worker import dram_share


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
    ("lower_mib", "free_mib", "shared_mib", "enough"),
    [
        (0, 32, 0, True),
        (0, 31, 0, False),
        (2, 48, 0, True),
        (2, 47, 0, False),
        (0, 4, 28, True),  # the last of eight ranks: the others have theirs
        (0, 4, 27, False),
        (0, 3, 500, False),  # what others share is no more than seven arenas
    ],
)
def test_there_must_be_room_for_every_rank(
    lower_mib: int,
    free_mib: int,
    shared_mib: int,
    enough: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: free_mib << 20)
    monkeypatch.setattr(topology, "shared_nbytes", lambda: shared_mib << 20)
    assert placing.fits(4 << 20, lower_mib << 20, 8) == enough


def test_memory_that_was_not_asked_for_is_not_taken() -> None:
    arena = Arena(4, 1 << 20)
    placing.settle(arena, (), 1, fill=False)
    assert arena.locate().present == 0
    arena.close()


def test_what_nobody_configured_is_shared_by_every_engine_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: 64 << 30)
    assert dram_share(load(None), 2, 4) == 2 << 30  # of a quarter, 16 GiB, an eighth
    configured = load({"tiers": [{"kind": "dram", "capacity": "8GiB"}]})
    assert dram_share(configured, 2, 4) == 4 << 30
