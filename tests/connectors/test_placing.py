"""A rank's memory is put on the node of its device, or where the configuration says."""

import os

import pytest

pytest.importorskip("vllm")

import torch

from kvtier import topology
from kvtier.connectors.vllm import placing
from kvtier.memory.arena import Arena
from kvtier.memory.region import Sharing


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
    ("ranks", "free_mib", "others", "share_mib"),
    [
        (1, 32, [], 32),
        (8, 32, [], 4),
        (8, 4, [(4, 4)] * 7, 4),  # the last of eight ranks: the others have theirs
        (8, 8, [(4, 4)] * 6, 4),
        (8, 18, [(4, 2)] * 7, 4),  # the others' arenas fill up meanwhile
        (8, 32, [(4, 0)] * 7, 4),  # and none is taken ahead
        (2, 3, [(4, 0)], 0),
        (2, 4, [(4, 4)] * 2, 4),  # somebody who is long gone
    ],
)
def test_a_rank_s_share_of_free_memory_is_the_same_early_and_late(
    ranks: int,
    free_mib: int,
    others: list[tuple[int, int]],
    share_mib: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    regions = [Sharing(nbytes << 20, taken << 20) for nbytes, taken in others]
    monkeypatch.setattr(topology, "free_nbytes", lambda: free_mib << 20)
    monkeypatch.setattr(placing, "regions_of_others", lambda owner: regions)
    assert placing.share_of_free(ranks, "server") == share_mib << 20


def test_memory_that_was_not_asked_for_is_not_taken() -> None:
    arena = Arena(4, 1 << 20)
    placing.settle(arena, (), 1, fill=False)
    assert arena.locate().present == 0
    arena.close()
