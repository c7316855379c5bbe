"""A rank's memory is put on the node of its device, or where the configuration says."""

import os
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import torch

from kvtier import topology
from kvtier.config import load
from kvtier.connectors.vllm import placing
from kvtier.connectors.vllm.worker import dram_share
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


@pytest.mark.parametrize(
    ("engine_id", "index", "size", "engine"),
    [
        ("ab12", 0, 1, None),
        ("ab12_dp0", 0, 1, 0),  # of a dense model: vLLM keeps the name only
        ("ab12_dp13", 0, 1, 13),
        ("ab12_dp1", 1, 4, 1),
        ("ab12", 2, 4, 2),
        (None, 0, 1, None),
        ("ab12_dp1_x", 0, 1, None),
    ],
)
def test_which_engine_this_is(
    engine_id: str | None, index: int, size: int, engine: int | None
) -> None:
    parallel = SimpleNamespace(data_parallel_index=index, data_parallel_size=size)
    assert placing.engine_of(engine_id, parallel) == engine


def test_engines_of_one_server_have_one_owner() -> None:
    assert {placing.owner_of(f"ab12_dp{i}") for i in range(3)} == {"ab12"}
    assert placing.owner_of("ab12") == "ab12"
    assert placing.owner_of(None) == ""


@pytest.mark.parametrize(
    ("configured", "engine", "ranks", "cards", "gpus", "engines"),
    [
        (1, None, 2, 0, 8, 1),
        (0, None, 2, 0, 0, 1),
        (4, 1, 2, 0, 8, 4),  # vLLM knows
        (1, 1, 2, 8, 0, 4),  # vLLM forgot
        (1, 0, 2, 0, 8, 4),
        (1, 0, 1, 0, 0, 1),  # on the CPU nothing says
    ],
)
def test_how_many_engines_share_the_node(
    configured: int,
    engine: int | None,
    ranks: int,
    cards: int,
    gpus: int,
    engines: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = SimpleNamespace(cards=range(cards))
    monkeypatch.setattr(topology, "ask_nvml", lambda: nvml)
    monkeypatch.setattr(topology, "gpus", lambda: range(gpus))
    assert placing.engines_here(configured, engine, ranks) == engines


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
