"""Who may store and load: engines by their role, requests by the tiers that they want."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig
from vllm.v1.kv_offload.base import Locality, Medium, ReqContext, TierFilter, TierMatcher

from kvtier.brain import Why
from kvtier.config import load
from kvtier.connectors.vllm.permissions import Permissions
from kvtier.types import BlockKey
from tests.connectors.test_scheduling import Engine, refusals


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_the_role_of_the_engine_decides_who_stores_and_who_loads(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(role: str) -> None:
        transfer = KVTransferConfig("KVTierConnector", kv_role=role)
        side = engine.side
        monkeypatch.setattr(side._vllm_config, "kv_transfer_config", transfer)
        side._permissions = Permissions(side._config, side._vllm_config, side._media)

    play("kv_producer")
    assert engine.store(engine.arrive("a", 2)) == 2
    assert not engine.hit(engine.keys("a", 1)[0], engine.arrive("a2", 1, keys="a"))
    assert not engine.side.brain.view.requests["a2"].reads
    assert refusals(engine) == ({Why.ROLE: 2}, {})
    play("kv_consumer")
    assert engine.hit(engine.keys("a", 1)[0], engine.arrive("a3", 1, keys="a"))
    assert engine.store(engine.arrive("b", 2)) == 0
    assert refusals(engine)[1] == {Why.ROLE: 2}


CPU, STORAGE = TierMatcher(Medium.CPU), TierMatcher(Medium.STORAGE)
FAR_AWAY = TierMatcher(Medium.STORAGE, Locality.REMOTE)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((CPU,), {"dram", "far", "dram, nvme"}),
        ((STORAGE,), {"nvme", "dram, nvme"}),
        ((CPU, STORAGE), {"dram", "far", "nvme", "dram, nvme"}),
        ((FAR_AWAY,), set()),
        ((), set()),
    ],
)
def test_a_request_loads_from_the_tiers_that_it_wants(
    wanted: tuple[TierMatcher, ...], found: set[str], engine: Engine, tmp_path: Path
) -> None:
    places = ["dram", "far", "nvme", "dram, nvme"]
    tiers = [{"name": "far", "kind": "memory", "capacity": "1MiB"}]
    tiers += [{"name": "nvme", "kind": "file", "path": str(tmp_path), "capacity": "1MiB"}]
    side = engine.side
    config = load({"tiers": [{"name": "dram", "kind": "dram"}, *tiers]})
    side._permissions = Permissions(config, side._vllm_config, side._media)
    names = [tier.name for tier in config.tiers]
    keys = dict(zip(engine.keys("a", 4), places, strict=True))
    brain: Any = SimpleNamespace(
        lookup=lambda request, key: True,
        refuse_load=lambda request, why: None,
        view=SimpleNamespace(holds=lambda tier, key: names[tier] in keys[key].split(", ")),
    )
    side._brain = brain
    context = ReqContext(req_id="b", load_tier_filter=TierFilter(wanted))
    assert {keys[key] for key in keys if engine.hit(key, context)} == found
    assert all(engine.hit(key, ReqContext(req_id="b")) for key in keys)


def test_what_was_read_for_a_request_is_its_own_wherever_it_is_then(engine: Engine) -> None:
    engine.store(engine.arrive("a", 1))
    (key,) = engine.keys("a", 1)
    engine.arrive("b", 1, keys="a")
    context = ReqContext(req_id="b", load_tier_filter=TierFilter((STORAGE,)))
    assert not engine.hit(key, context)
    engine.side._live["b"].below[BlockKey(key)] = 1
    assert engine.hit(key, context)


def test_a_memory_tier_is_no_disk(engine: Engine, tmp_path: Path) -> None:
    tiers = [{"name": "hot", "kind": "dram", "capacity": "1MiB"}]
    tiers += [{"name": "far", "kind": "memory", "capacity": "1MiB"}]
    tiers += [{"name": "nvme", "kind": "file", "path": str(tmp_path), "capacity": "1MiB"}]
    side, config = engine.side, load({"tiers": tiers})
    side._permissions = Permissions(config, side._vllm_config, side._media)
    engine.arrive("a", 1)
    (key,) = engine.keys("a", 1)
    sources = []
    for tier in range(3):
        side._live["a"].below[BlockKey(key)] = tier
        sources.append(engine.manager.get_load_source(key, ReqContext(req_id="a")).value)
    assert sources == ["host", "host", "disk"]
