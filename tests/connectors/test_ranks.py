"""Capacity is of one engine on one node: every rank takes its share of it, and the brain knows the same number."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm")

import torch
import yaml
from typer.testing import CliRunner
from vllm.config import ParallelConfig
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
)

from kvtier import topology
from kvtier.assembly import lower_tier
from kvtier.cli.main import build
from kvtier.config import dram_nbytes, load, of_rank
from kvtier.connectors.vllm import ranks, worker
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.rank import Rank
from kvtier.connectors.vllm.ranks import Hello, Sharers
from kvtier.connectors.vllm.settings import summary
from kvtier.connectors.vllm.spec import KVTierSpec
from kvtier.connectors.vllm.weights import Weights
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.doctor import memory
from kvtier.doctor.finding import Patient
from kvtier.errors import ConfigError
from kvtier.io_process.wire import IoSetup
from kvtier.units import format_nbytes
from tests.connectors import halves

PAGE = 8192
MIB = 1 << 20
TIB = 1 << 40
PRIVATE = Weights("private:0", "sample:0")  # of another node, with files of its own
DRAM, FAR, READ = 64 * MIB, 32 * MIB, 16 << 30


class Layout(NamedTuple):
    """How an engine is spread, as vLLM is told, and what a rank then shares its node with."""

    said: dict[str, Any]
    sharers: Sharers
    devices: int = 8  # that one process sees
    engine_id: str = "server"


LAYOUTS = {
    "1 rank": Layout({}, Sharers(1)),
    "TP 8 on one node": Layout({"tensor_parallel_size": 8}, Sharers(8)),
    "TP 16 on two nodes": Layout(
        {"tensor_parallel_size": 16, "nnodes": 2, "node_rank": 1}, Sharers(8)
    ),
    "8 ranks that see one device each": Layout({"tensor_parallel_size": 8}, Sharers(8), devices=1),
    "TP 2 where a process sees no device": Layout(
        {"tensor_parallel_size": 2}, Sharers(2), devices=0
    ),
    "PP 2 x TP 2": Layout({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, Sharers(4)),
    "PP 2 on two nodes x TP 4": Layout(
        {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "nnodes": 2}, Sharers(4)
    ),
    "DP 2 x TP 4 on one node": Layout(
        {"tensor_parallel_size": 4, "data_parallel_size": 2, "data_parallel_size_local": 2},
        Sharers(4, engines=2),
        engine_id="server_dp1",
    ),
    "DP 2 x TP 4, one engine on each of two nodes": Layout(
        {
            "tensor_parallel_size": 4,
            "data_parallel_size": 2,
            "data_parallel_size_local": 1,
            "nnodes": 2,
        },
        Sharers(
            4, engines=2
        ),  # vLLM says 1 for any that it does not know: the machine's 8 GPUs make two
        engine_id="server_dp1",
    ),
    "DP 2 x TP 16 on four nodes": Layout(
        {
            "tensor_parallel_size": 16,
            "data_parallel_size": 2,
            "data_parallel_size_local": 1,
            "nnodes": 4,
        },
        Sharers(8),
        engine_id="server_dp0",
    ),
}


def parallel_of(layout: Layout) -> ParallelConfig:
    return ParallelConfig(**layout.said)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A layout, on a machine of 8 GPUs, of which a process is shown only some."""
    found = LAYOUTS[request.param]
    monkeypatch.setattr(topology, "ask_nvml", lambda: SimpleNamespace(cards=range(8)))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: found.devices)
    return found


@pytest.fixture
def tiers(tmp_path: Path) -> list[dict[str, Any]]:
    medium = {"read": READ}
    return [
        {"name": "dram", "kind": "dram", "capacity": DRAM},
        {"name": "far", "kind": "memory", "capacity": FAR},
        {"name": "nvme", "kind": "file", "path": str(tmp_path / "kv"), "capacity": TIB}
        | {"medium": medium},
    ]


class Start(NamedTuple):
    """A rank that has started."""

    worker: KVTierWorker
    hello: Hello
    io: IoSetup  # what its I/O process was told


@pytest.fixture
def start(
    layout: Layout, tiers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    """The first rank of the layout, started as vLLM does, but for its I/O process."""
    told: list[IoSetup] = []

    class Client:
        placed: tuple[()] = ()

        def __init__(self, setup: IoSetup, arena_fd: int) -> None:
            told.append(setup)

        def wait_ready(self) -> None: ...

        def poll(self) -> list[Any]:
            return []

        def close(self) -> None: ...

    monkeypatch.setattr(worker, "IoPair", Client)
    config = load({"tiers": tiers})
    parallel = parallel_of(layout)
    offloading: Any = SimpleNamespace(
        extra_config={"kvtier": {"tiers": tiers}},
        cache=SimpleNamespace(blocks_per_chunk=2),
        groups=[SimpleNamespace(group_id=0)],
        model=SimpleNamespace(dtype="bfloat16"),
        parallel=parallel,
        engine_id=layout.engine_id,
    )
    spec = KVTierSpec.__new__(KVTierSpec)
    spec.config, spec.guard, spec.pages = offloading, Guard(), {}
    vllm: Any = SimpleNamespace(
        parallel_config=parallel,
        model_config=SimpleNamespace(model="/nowhere", revision=None, seed=0),
        load_config=SimpleNamespace(load_format="dummy"),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )
    base: Any = SimpleNamespace(spec=spec, worker=None)
    group = SimpleNamespace(layer_names=[], kv_cache_spec=None)
    cache: Any = SimpleNamespace(kv_cache_groups=[group], num_blocks=4)
    rank = Rank(config, vllm, cache, base)
    monkeypatch.setattr("kvtier.connectors.vllm.rank.find_pages", lambda *_: {})
    rank.learn({})
    assert spec.sharers == layout.sharers
    tensor = torch.zeros((4, PAGE), dtype=torch.int8)
    refs = [[CanonicalKVCacheRef(0, PAGE)]]
    base.worker = spec.get_worker(CanonicalKVCaches([CanonicalKVCacheTensor(tensor, PAGE)], refs))
    yield Start(rank.worker, rank.hello(), told[0])
    rank.worker.shutdown()


def side_of(config: dict[str, Any], hellos: list[Hello]) -> Any:
    return halves.scheduling(config=load(config), hellos=hellos)


def test_worker_and_brain_take_the_same_share(
    start: Start, layout: Layout, tiers: list[dict[str, Any]]
) -> None:
    n = layout.sharers.ranks
    assert start.worker.arena.nbytes == DRAM // n // (2 * PAGE) * 2 * PAGE
    shares = [tier["capacity"] for tier in start.io.tiers]
    assert shares == [FAR // n, TIB // n]
    assert (start.io.local_ranks, start.io.engines) == layout.sharers
    assert start.hello.local_ranks == n
    world_size = parallel_of(layout).world_size
    side = side_of({"tiers": tiers}, [replace(start.hello, rank=i) for i in range(world_size)])
    assert [side.brain.view.tier(tier).capacity for tier in (1, 2)] == shares
    told = [tier.capacity for tier in side.brain.stats().tiers[1:]]
    assert told == [share * world_size for share in shares], "metrics are of all ranks"
    medium = lower_tier(of_rank(load({"tiers": tiers}), n).tiers[2]).medium
    assert medium is not None
    assert medium.read == pytest.approx(READ / n)


def test_the_line_of_the_start_and_the_commands_say_the_same(
    layout: Layout, tiers: list[dict[str, Any]], tmp_path: Path
) -> None:
    config, n = load({"tiers": tiers}), layout.sharers.ranks
    said = summary(of_rank(config, n), dram_nbytes(config, n))
    assert f"dram {format_nbytes(DRAM // n)}, far {format_nbytes(FAR // n)} (memory)" in said
    assert f"nvme {format_nbytes(TIB // n)} (file at" in said
    file = tmp_path / "kvtier.yaml"
    file.write_text(yaml.safe_dump({"tiers": tiers}))
    arguments = ["config", "check", str(file), "--tp", str(n)]
    done = CliRunner().invoke(build(), arguments, env={"COLUMNS": "200"})
    rows = [line.strip("│").split("│") for line in done.output.splitlines() if "│" in line]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[:3]}
    assert cells == {
        name: [format_nbytes(whole), format_nbytes(whole // n)]
        for name, whole in (("dram", DRAM), ("far", FAR), ("nvme", TIB))
    }
    (finding,) = memory.room(Patient(config=config))
    mine = of_rank(config, n).tiers
    taken = (dram_nbytes(config, n) + (mine[1].capacity or 0)) * n
    assert finding.what.startswith(f"{format_nbytes(taken)} configured")


@pytest.mark.parametrize("backend", ["ray", "external_launcher", "package.module.Executor"])
def test_where_ranks_are_placed_by_others_all_of_them_may_be_here(backend: str) -> None:
    parallel = ParallelConfig(tensor_parallel_size=16)
    parallel.distributed_executor_backend = backend
    assert ranks.local_ranks(parallel) == 16


def test_a_release_that_does_not_say_is_taken_at_its_worst() -> None:
    bare: Any = SimpleNamespace(world_size=16)
    assert ranks.local_ranks(bare) == 16
    assert (
        ranks.local_ranks(SimpleNamespace(world_size=16, distributed_executor_backend="mp")) == 16
    )


def test_a_spec_that_nobody_told_assumes_that_all_ranks_are_here() -> None:
    config: Any = SimpleNamespace(
        **dict.fromkeys(("engine_id", "kv_cache_layout")),
        extra_config={},
        enable_kv_cache_events=False,
        parallel=SimpleNamespace(world_size=4, rank=0),
        groups=[SimpleNamespace(tokens_per_block=16)],
        cache=SimpleNamespace(tokens_per_hash=16, blocks_per_chunk=2),
        replicated_layout=False,
    )
    assert KVTierSpec(config).sharers == (4, 1)


def test_where_nodes_have_different_numbers_of_ranks_the_brain_takes_the_smallest_share(
    tiers: list[dict[str, Any]],
) -> None:
    config = load({"tiers": tiers})
    hellos = [
        halves.hello(8 if local == 2 else 5, rank=i, local_ranks=local, config=config)
        for i, local in enumerate([6] * 6 + [2] * 2)
    ]
    side = side_of({"tiers": tiers}, hellos)
    assert (side.ranks.local_ranks, side.ranks.slots) == (6, 5)
    assert side.brain.view.tier(2).capacity == TIB // 6


def test_ranks_that_disagree_are_refused() -> None:
    one, other = halves.hello(8), halves.hello(8, rank=1)
    digest = one.config_digest
    for same in (other, replace(other, weights=None), replace(other, weights=PRIVATE)):
        assert ranks.agree([one, same], digest).hellos == (one, same)
    for hellos, message in [
        ([one, replace(other, config_digest="x")], "changed during the start"),
        ([one, replace(other, weights=Weights("content:1", "sample:1"))], "disagree on weights"),
        ([one, replace(other, blocks_per_chunk=1)], "disagree on blocks_per_chunk"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ranks.agree(hellos, digest)


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
    assert ranks.engine_of(engine_id, parallel) == engine


def test_engines_of_one_server_have_one_owner() -> None:
    assert {ranks.owner_of(f"ab12_dp{i}") for i in range(3)} == {"ab12"}
    assert ranks.owner_of("ab12") == "ab12"
    assert ranks.owner_of(None) == ""


@pytest.mark.parametrize(
    ("configured", "engine", "local_ranks", "cards", "gpus", "engines"),
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
    local_ranks: int,
    cards: int,
    gpus: int,
    engines: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = SimpleNamespace(cards=range(cards))
    monkeypatch.setattr(topology, "ask_nvml", lambda: nvml)
    monkeypatch.setattr(topology, "gpus", lambda: range(gpus))
    assert ranks.engines_here(configured, engine, local_ranks) == engines


def test_an_engine_of_a_dense_model_has_its_own_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM makes each of them the only one before it starts ranks: its name and the GPUs say that there are more."""
    monkeypatch.setattr(topology, "ask_nvml", lambda: SimpleNamespace(cards=range(8)))
    parallel = parallel_of(LAYOUTS["DP 2 x TP 4 on one node"])
    parallel.data_parallel_size = parallel.data_parallel_size_local = 1
    assert ranks.sharers("server_dp1", parallel) == (4, 2)


def test_what_nobody_configured_is_shared_by_every_engine_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: 64 << 30)
    assert dram_nbytes(load(None), 2, 4) == 2 << 30  # of a quarter, 16 GiB, an eighth
    configured = load({"tiers": [{"kind": "dram", "capacity": "8GiB"}]})
    assert dram_nbytes(configured, 2, 4) == 4 << 30
