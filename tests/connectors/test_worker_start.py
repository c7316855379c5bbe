"""What a worker decides at its start: what of its arena fits, what is left for its lower tiers, who is here."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
)

from kvtier import topology
from kvtier.config import load
from kvtier.connectors.vllm import device, pages, placing, rank
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.rank import Rank
from kvtier.connectors.vllm.ranks import Sharers
from kvtier.connectors.vllm.spec import KVTierSpec
from kvtier.connectors.vllm.weights import Weights
from kvtier.connectors.vllm.worker import KVTierWorker
from kvtier.errors import ConfigError
from kvtier.memory.arena import Arena
from kvtier.memory.region import Sharing

PAGE = 8192
MIB = 1 << 20
FAR = {"name": "far", "kind": "memory", "capacity": "4MiB"}


class Seen:
    """What the worker asked for."""

    spare: int = -1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """A machine with 32 MiB free, and a device that is none."""
    found = Seen()

    def engine(*_: object) -> SimpleNamespace:
        """Copy nothing."""
        return SimpleNamespace(onload=engine)

    def start_io(*arguments: Any) -> None:
        found.spare = arguments[-1]

    monkeypatch.setattr(topology, "free_nbytes", lambda: 32 * MIB)
    monkeypatch.setattr(placing, "regions_of_others", lambda owner: [])  # of another test run
    monkeypatch.setattr(device, "stream_engine", engine)
    monkeypatch.setattr(KVTierWorker, "_start_io", start_io)
    return found


def start(capacity: str | None, *, ranks: int = 1, engines: int = 1) -> KVTierWorker:
    """Start a worker on a device."""
    tensor = torch.zeros((4, PAGE), dtype=torch.int8, device="meta")
    caches = CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor, PAGE)], [[CanonicalKVCacheRef(0, PAGE)]]
    )
    dram = {"kind": "dram", **({"capacity": capacity} if capacity else {})}
    config: Any = SimpleNamespace(
        extra_config={"kvtier": {"tiers": [dram, FAR]}},
        cache=SimpleNamespace(blocks_per_chunk=2),
        groups=[SimpleNamespace(group_id=0)],
        parallel=SimpleNamespace(rank=0),
        engine_id="server_dp1",
    )
    return KVTierWorker(config, caches, {}, Sharers(ranks, engines), Guard())


def is_filled(made: KVTierWorker) -> bool:
    prefault = made.arena._prefault
    if prefault is not None:
        prefault.wait()
    made.arena.close()
    return prefault is not None


@pytest.mark.parametrize(
    ("capacity", "ranks", "engines", "arena_mib"),
    [
        ("16MiB", 1, 1, 16),
        ("28MiB", 1, 1, 28),
        ("29MiB", 1, 1, 28),
        ("900TiB", 1, 1, 28),  # more than can be mapped
        ("16MiB", 2, 1, 8),
        ("16MiB", 2, 2, 7),  # of each of two engines
        (None, 1, 1, 8),  # a quarter of 32 MiB
        (None, 1, 4, 2),
    ],
)
def test_an_arena_is_as_large_as_all_ranks_fit_beside_each_other(
    seen: Seen,
    caplog: pytest.LogCaptureFixture,
    capacity: str | None,
    ranks: int,
    engines: int,
    arena_mib: int,
) -> None:
    made = start(capacity, ranks=ranks, engines=engines)
    assert made.arena.nbytes == arena_mib * MIB
    assert seen.spare == 32 * MIB // (ranks * engines) - made.arena.nbytes
    assert is_filled(made)
    said = [line.message for line in caplog.records if "clamped" in line.message]
    if arena_mib in (7, 28) and capacity != "28MiB":
        (line,) = said
        wanted = "8MiB" if arena_mib == 7 else capacity
        assert line.startswith(f"kvtier: tiers[0].capacity: {wanted} for each of")
        assert f"clamped to {arena_mib}MiB of each" in line
    else:
        assert not said


def test_the_start_is_refused_where_next_to_nothing_fits(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: 17 * 2 * PAGE)
    with pytest.raises(
        ConfigError, match=r"tiers.0..capacity: 16MiB, and 272KiB of memory are free"
    ):
        start("16MiB")
    assert start("32KiB").arena.slots == 2, "a tier that is meant to be small"


def test_explicit_huge_pages_take_no_ordinary_memory(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Huge(Arena):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.huge = True

    monkeypatch.setattr(placing, "Arena", Huge)
    monkeypatch.setattr(placing, "free_huge_nbytes", lambda nodes: 64 * MIB)
    made = start("64MiB")
    assert (made.arena.nbytes, seen.spare) == (64 * MIB, 32 * MIB)
    made.arena.close()


def test_every_rank_of_a_server_has_one_owner(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[str] = []

    def others(owner: str) -> list[Sharing]:
        owners.append(owner)
        return []

    monkeypatch.setattr(placing, "regions_of_others", others)
    start("8MiB").arena.close()
    assert owners == ["server"]


@pytest.mark.parametrize(
    ("device", "codec", "eviction", "asked"),
    [
        ("cpu", "raw", "lru", True),
        ("meta", "raw", "lru", False),  # no kernel is called that nobody needs
        ("meta", "int8", "lru", True),
        ("meta", "raw", "attention", True),
    ],
)
def test_a_rank_learns_who_is_here_and_where_keys_lie(
    device: str, codec: str, eviction: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "ask_nvml", lambda: SimpleNamespace(cards=range(8)))
    monkeypatch.setattr(rank, "find_pages", lambda *_: {0: "asked"})
    tiers = [{"kind": "dram", "eviction": eviction}, {**FAR, "codec": codec}]
    spec = KVTierSpec.__new__(KVTierSpec)
    spec.config, spec.pages, spec.guard = SimpleNamespace(engine_id="a_dp1"), {}, Guard()
    monkeypatch.setattr(rank, "identify", lambda *_: Weights("content:0"))
    parallel = SimpleNamespace(
        rank=2,
        distributed_executor_backend="mp",
        world_size=4,
        local_world_size=2,
        data_parallel_size_local=1,
        data_parallel_index=1,
        data_parallel_size=1,
    )
    vllm: Any = SimpleNamespace(
        parallel_config=parallel,
        model_config=None,
        load_config=None,
        compilation_config=SimpleNamespace(static_forward_context={}),
    )
    group = SimpleNamespace(layer_names=["a"], kv_cache_spec=None)
    cache: Any = SimpleNamespace(kv_cache_groups=[group], num_blocks=1)
    base: Any = SimpleNamespace(spec=spec)
    for number, looks in ((2, True), (3, False)):  # the first on its node, and another
        parallel.rank = number
        made = Rank(load({"tiers": tiers}), vllm, cache, base)
        made.learn({"a": torch.zeros(1, device=device)})
        assert (made._weights is not None) == looks
    assert spec.pages == ({0: "asked"} if asked else {})
    assert spec.sharers == (2, 4)
    assert pages.asked_for(load({"tiers": tiers})) == (asked and device == "meta")
